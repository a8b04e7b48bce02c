"""A standalone checkpoint: the base's own files with edited tensors in place.

Tensor names, file layout, order and metadata stay; every tensor without an edit is copied byte for byte. The folder
loads with plain `AutoModelForCausalLM.from_pretrained`, and no code of ours is needed at run time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from alignez_bake.exporters.base_files import SkippedFile, copy_base_files, write_config_dtype

from alignez_bake.errors import BadInputError
from alignez_bake.lowering.decide import Refusal, fold_refusal
from alignez_bake.lowering.fold import EditedTensors
from alignez_bake.progress import NoProgress
from alignez_bake.safetensors_io.index import rewrite_index
from alignez_bake.safetensors_io.writer import copy_with_replacements, rewrite_file

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from alignez_bake.edit import Edit
    from alignez_bake.lowering.decide import Lowering
    from alignez_bake.lowering.slot import Slot
    from alignez_bake.model_folder import ModelFolder
    from alignez_bake.progress import Progress

DtypeName = Literal["float32", "float16", "bfloat16", "float64"]
FILE_DTYPES: Final[dict[str, str]] = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}


@dataclass(frozen=True)
class CheckpointResult:
    """What an export did beside the edits: the files of the base that it left out."""

    skipped: tuple[SkippedFile, ...]


class CheckpointExporter:
    """Writes a folded checkpoint. Only edits that fold into the tensors that are there can go in."""

    name = "checkpoint"

    def supports(self, edit: Edit, slot: Slot) -> Refusal | None:
        """None if the edit folds at this slot."""
        return fold_refusal(edit, slot)

    def export(
        self,
        base: ModelFolder,
        lowering: Lowering,
        out: Path,
        *,
        dtype: DtypeName | None = None,
        progress: Progress | None = None,
    ) -> CheckpointResult:
        """Write the checkpoint into the empty folder `out`.

        Args:
            base: the base model; only read.
            lowering: decisions for every edit, none of them refused.
            out: folder to write into, such as `output_folder.staged_output` gives.
            dtype: of all float tensors, and of config.json; the stored dtypes unless given.
            progress: counts tensors.

        Raises:
            BadInputError: refused edits, weights that are not finite, an overflow of the dtype, a full disk.
        """
        lowering.require_complete()
        edited = EditedTensors(lowering.folds, base.tensors)
        (out / "alignez").mkdir(exist_ok=True)
        headers = {}
        with (progress or NoProgress()).task("writing tensors", len(edited.names)) as advance:

            def compute(name: str, file_dtype: str) -> NDArray[Any]:
                advance()
                return edited.compute(name).rounded(file_dtype)

            for file in base.tensors.files:
                source = base.tensors.header(file)
                if dtype is None:
                    headers[file] = copy_with_replacements(
                        source,
                        out / file,
                        lambda name: compute(name, base.tensors.entry(name).dtype) if name in edited else None,
                    )
                else:
                    headers[file] = rewrite_file(
                        source,
                        out / file,
                        lambda _name, _entry: FILE_DTYPES[dtype],
                        lambda name, values: compute(name, FILE_DTYPES[dtype]) if name in edited else values,
                    )
        if base.tensors.index is not None:
            rewrite_index(base.tensors.index, out / base.tensors.index.name, headers)
        skipped = copy_base_files(base.path, out, base.tensors.files)
        if dtype is not None:
            write_config_dtype(base.config, out / "config.json", dtype)
        return CheckpointResult(skipped)


def check_dtype(name: str | None) -> DtypeName | None:
    """A weight dtype by transformers' name, or None for the base's own.

    Raises:
        BadInputError: not one of those.
    """
    if name is not None and name not in FILE_DTYPES:
        raise BadInputError(f"--dtype {name!r} is unknown: use one of {', '.join(FILE_DTYPES)}")
    return name  # type: ignore[return-value]  # one of the literals, as just checked
