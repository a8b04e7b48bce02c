"""A standalone checkpoint: the base's own files with edited tensors in place.

Tensor names, file layout, order and metadata stay; every tensor without an edit is copied byte for byte. Where all
edits fold, the folder loads with plain `AutoModelForCausalLM.from_pretrained`; with inserted modules it brings one
generated code file along and needs `trust_remote_code=True`. No code of ours is needed at run time.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from alignez_bake.exporters.base_files import code_files, copy_base_files, with_dtype
from alignez_bake.exporters.checkpoint_contents import checkpoint_contents
from alignez_bake.exporters.dtype import FILE_DTYPES, check_dtype
from alignez_bake.exporters.protocol import Exported, NeedsNoModel

from alignez_bake.certificate.tensors import certify_tensors
from alignez_bake.errors import BadInputError
from alignez_bake.lowering.decide import Refusal, fold_refusal
from alignez_bake.model_folder import open_model_folder
from alignez_bake.safetensors_io.dtypes import BY_NAME, file_dtype_of
from alignez_bake.safetensors_io.index import rewrite_index
from alignez_bake.safetensors_io.writer import Part, assemble_file, copy_with_replacements, rewrite_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from alignez_bake.exporters.checkpoint_contents import CheckpointContents
    from alignez_bake.exporters.dtype import DtypeName
    from alignez_bake.exporters.protocol import ExportSettings
    from alignez_bake.exporters.torch_result import TorchResult
    from numpy.typing import NDArray

    from alignez_bake.certificate.verdict import Level, LevelCertificate
    from alignez_bake.edit import Edit
    from alignez_bake.lowering.decide import Lowering, Route
    from alignez_bake.lowering.slot import Slot
    from alignez_bake.model_folder import ModelFolder
    from alignez_bake.progress import Advance, Progress
    from alignez_bake.safetensors_io.header import Header


class CheckpointExporter(NeedsNoModel):
    """Writes a checkpoint: folds into the base's tensors or an equivalent model's, and inserted modules."""

    name = "checkpoint"
    routes: frozenset[Route] = frozenset({"fold", "rehome", "insert"})
    exactness = "exact, rounded once"
    cost = "none: same tensors"
    card_library = "transformers"
    highest_level: Level = "forward"

    def supports(self, edit: Edit, slot: Slot) -> Refusal | None:
        """None if the edit folds at this slot."""
        return fold_refusal(edit, slot)

    def check(self, base: ModelFolder, lowering: Lowering, settings: ExportSettings) -> None:
        """Refuse inserts that no generated code can carry, and unknown dtypes."""
        check_dtype(settings.dtype)
        checkpoint_contents(base, lowering)

    def bytes_needed(self, base: ModelFolder, lowering: Lowering, settings: ExportSettings) -> int:
        """Bytes that the weights will take on disk."""
        contents = checkpoint_contents(base, lowering)
        stored = sum(
            _bytes(contents.home.tensors.entry(name).shape, _file_dtype(contents, name, settings.dtype))
            for name in contents.home.tensors
        )
        return stored + sum(array.nbytes for array in contents.added.values())

    def export(
        self, base: ModelFolder, lowering: Lowering, out: Path, settings: ExportSettings, progress: Progress
    ) -> Exported:
        """Write the checkpoint into the empty folder `out`.

        Raises:
            BadInputError: refused edits, weights that are not finite, an overflow of the dtype, a full disk.
        """
        lowering.require_complete()
        dtype = check_dtype(settings.dtype)
        contents = checkpoint_contents(base, lowering)
        headers = {}
        with progress.task("writing tensors", len(contents.edited.names)) as advance:
            for file in base.tensors.files:
                headers[file] = _write_file(contents, file, out / file, dtype, advance)
        if base.tensors.index is not None:
            rewrite_index(base.tensors.index, out / base.tensors.index.name, headers)
        skipped = copy_base_files(base.path, out, base.tensors.files)
        config = contents.config if dtype is None else with_dtype(contents.config, dtype)
        if config != base.config:
            text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
            (out / "config.json").write_text(text, encoding="utf-8")
        for name, text in {**contents.code, **contents.rewritten}.items():
            (out / name).write_text(text, encoding="utf-8")
        return Exported(skipped)

    def certify_tensors(self, base: ModelFolder, lowering: Lowering, out: Path, progress: Progress) -> LevelCertificate:
        """Every tensor, config entry and file against formula and base."""
        return certify_tensors(base, open_model_folder(out), lowering, progress=progress)

    def reload(
        self, base: ModelFolder, out: Path, lowering: Lowering, *, device: str, trust_remote_code: bool
    ) -> TorchResult:
        """The checkpoint by transformers' Auto class; the generated code runs only if it is what we generate.

        Raises:
            BadInputError: a folder that does not load, or one with other code than the edits ask for.
        """
        from alignez_bake.exporters.torch_result import TorchResult  # noqa: PLC0415 - imports torch

        from alignez_bake.language_model.loading import load_model  # noqa: PLC0415 - likewise

        contents, result = checkpoint_contents(base, lowering), open_model_folder(out)
        if contents.code:
            _check_code(contents, result, trust_remote_code=trust_remote_code)
        loaded = load_model(result, device=device, trust_remote_code=trust_remote_code or bool(contents.code))
        return TorchResult(loaded, base, lowering, device, trust_remote_code=trust_remote_code)


def _check_code(contents: CheckpointContents, result: ModelFolder, *, trust_remote_code: bool) -> None:
    """Refuse to let transformers run anything but the generated code, for which the flag is set here.

    config.json could name another file, and a `custom_generate/generate.py` is run without being named anywhere.

    Raises:
        BadInputError: the code that is not ours.
    """
    for name, text in contents.code.items():
        file = result.path / name
        if not file.is_file() or file.read_bytes() != text.encode("utf-8"):
            raise BadInputError(f"{file} is not the code that was generated for these edits: it is not run")
    if result.config.get("auto_map") != contents.config.get("auto_map"):
        raise BadInputError(
            f"{result.path / 'config.json'} names other code in auto_map than was generated: it is not run"
        )
    others = [name for name in code_files(result.path) if name not in contents.code]
    if others and not trust_remote_code:
        raise BadInputError(
            f"{result.path} brings code besides the generated one ({', '.join(others)}): it is not run without "
            "--trust-remote-code"
        )


def _write_file(
    contents: CheckpointContents, file: str, target: Path, dtype: DtypeName | None, advance: Advance
) -> Header:
    source, edited, tensors = contents.base.tensors.header(file), contents.edited, contents.home.tensors
    names = contents.names_in(file)

    def edited_values(name: str, file_dtype: str) -> NDArray[Any]:
        advance()
        return edited.compute(name).rounded(file_dtype)

    if names == list(source.entries) and all(tensors.entry(name).shape == source.entries[name].shape for name in names):
        if dtype is None:
            return copy_with_replacements(
                source, target, lambda name: edited_values(name, source.entries[name].dtype) if name in edited else None
            )
        return rewrite_file(
            source,
            target,
            lambda _name, _entry: FILE_DTYPES[dtype],
            lambda name, values: edited_values(name, FILE_DTYPES[dtype]) if name in edited else values,
        )

    def part(name: str) -> Part:
        if name in contents.added:
            array = contents.added[name]
            return Part(name, file_dtype_of(array.dtype), array.shape, lambda: array)
        file_dtype, entry = _file_dtype(contents, name, dtype), tensors.entry(name)
        values: Callable[[], NDArray[Any]] | None
        if name in edited:
            values = lambda: edited_values(name, file_dtype)  # noqa: E731
        elif contents.is_copied(name) and entry.dtype == file_dtype:
            values = None
        else:
            values = lambda: tensors.read(name)  # noqa: E731
        return Part(name, file_dtype, entry.shape, values)

    return assemble_file(source, target, [part(name) for name in names])


def _file_dtype(contents: CheckpointContents, name: str, dtype: str | None) -> str:
    stored = contents.home.tensors.entry(name).dtype
    return FILE_DTYPES[dtype] if dtype is not None and BY_NAME[stored].is_plain_float else stored


def _bytes(shape: tuple[int, ...], file_dtype: str) -> int:
    count = 1
    for size in shape:
        count *= size
    return count * BY_NAME[file_dtype].bits // 8
