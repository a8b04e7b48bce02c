"""A standalone checkpoint: the base's own files with edited tensors in place.

Tensor names, file layout, order and metadata stay; every tensor without an edit is copied byte for byte. Where all
edits fold, the folder loads with plain `AutoModelForCausalLM.from_pretrained`; with inserted modules it brings one
generated code file along and needs `trust_remote_code=True`. No code of ours is needed at run time.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from alignez_bake.exporters.base_files import code_files, copy_base_files, with_dtype
from alignez_bake.exporters.checkpoint_contents import checkpoint_contents
from alignez_bake.exporters.checkpoint_files import checkpoint_files
from alignez_bake.exporters.dtype import check_dtype
from alignez_bake.exporters.output_folder import OURS
from alignez_bake.exporters.protocol import Exported, NeedsNoModel

from alignez_bake.certificate.tensors import certify_tensors, certify_written
from alignez_bake.errors import BadInputError
from alignez_bake.lowering.decide import Refusal, fold_refusal
from alignez_bake.model_folder import open_model_folder
from alignez_bake.report.record import recorded_rounding
from alignez_bake.safetensors_io.file_access import check_unchanged
from alignez_bake.safetensors_io.header import read_header
from alignez_bake.safetensors_io.index import rewrite_index
from alignez_bake.streaming.journal import JOURNAL_FILE, Journal
from alignez_bake.streaming.weights import write_weights

if TYPE_CHECKING:
    from pathlib import Path

    from alignez_bake.exporters.checkpoint_contents import CheckpointContents
    from alignez_bake.exporters.protocol import ExportSettings, Option
    from alignez_bake.exporters.torch_result import TorchResult

    from alignez_bake.certificate.verdict import Level, LevelCertificate
    from alignez_bake.edit import Edit
    from alignez_bake.lowering.decide import Lowering, Route
    from alignez_bake.lowering.slot import Slot
    from alignez_bake.model_folder import ModelFolder
    from alignez_bake.progress import Progress
    from alignez_bake.streaming.written import WrittenFile


class CheckpointExporter(NeedsNoModel):
    """Writes a checkpoint: folds into the base's tensors or an equivalent model's, and inserted modules."""

    name = "checkpoint"
    routes: frozenset[Route] = frozenset({"fold", "rehome", "insert"})
    exactness = "exact, rounded once"
    cost = "none: same tensors"
    card_library = "transformers"
    highest_level: Level = "forward"
    options: frozenset[Option] = frozenset({"link", "rounding"})
    streams = True
    reads_fp8 = True

    def supports(self, edit: Edit, slot: Slot) -> Refusal | None:
        """None if the edit folds at this slot."""
        return fold_refusal(edit, slot)

    def check(self, base: ModelFolder, lowering: Lowering, settings: ExportSettings) -> None:
        """Refuse inserts that no generated code can carry, unknown dtypes, and what an FP8 base does not allow."""
        check_dtype(settings.dtype)
        if base.fp8_blocks is not None and settings.dtype is not None:
            raise BadInputError(
                f"{base.path} holds FP8 weights, which stay as they are where there is no edit: leave --dtype out, or "
                "use the unquantised base"
            )
        checkpoint_contents(base, lowering)

    def bytes_needed(self, base: ModelFolder, lowering: Lowering, settings: ExportSettings) -> int:
        """Bytes that the weights will take on disk, links left out."""
        contents, dtype = checkpoint_contents(base, lowering), check_dtype(settings.dtype)
        files = checkpoint_files(contents, dtype, settings.rounding, settings.row_backend)
        return sum(file.size for file in files if not (settings.link and file.is_the_base))

    def export(
        self, base: ModelFolder, lowering: Lowering, out: Path, settings: ExportSettings, progress: Progress
    ) -> Exported:
        """Write the checkpoint into the folder `out`, which is empty or what a killed run of the same bake left there.

        Raises:
            BadInputError: refused edits, weights that are not finite, an overflow of the dtype, a full disk.
        """
        lowering.require_complete()
        dtype = check_dtype(settings.dtype)
        contents = checkpoint_contents(base, lowering)
        # What is exported on the way to something else has none, and is made anew after a kill.
        journal = out / OURS / JOURNAL_FILE
        written = write_weights(
            checkpoint_files(contents, dtype, settings.rounding, settings.row_backend),
            out,
            Journal(journal if journal.is_file() else None),
            algorithm=settings.hash_algorithm,
            link=settings.link,
            progress=progress,
        )
        for file in base.tensors.files:
            check_unchanged(base.tensors.header(file))  # also after its last block was read
        if base.tensors.index is not None:
            headers = {file: read_header(out / file) for file in base.tensors.files}
            rewrite_index(base.tensors.index, out / base.tensors.index.name, headers, dropped=contents.dropped)
        skipped = copy_base_files(base.path, out, base.tensors.files)
        config = contents.config if dtype is None else with_dtype(contents.config, dtype)
        if config != base.config:
            text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
            (out / "config.json").write_text(text, encoding="utf-8")
        for name, text in {**contents.code, **contents.rewritten}.items():
            (out / name).write_text(text, encoding="utf-8")
        notes = tuple(note for file in written for note in _way_notes(file, link=settings.link))
        result = open_model_folder(out, fp8=True)
        return Exported(skipped, notes, written, certify_written(contents, result, lowering, written))

    def certify_tensors(self, base: ModelFolder, lowering: Lowering, out: Path, progress: Progress) -> LevelCertificate:
        """Every tensor, config entry and file against formula and base."""
        return certify_tensors(
            base, open_model_folder(out, fp8=True), lowering, rounding=recorded_rounding(out), progress=progress
        )

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


def _way_notes(file: WrittenFile, *, link: bool) -> list[str]:
    """How a weight file came to be, where that is no plain writing, or was asked for and could not be."""
    if file.way in ("hard-linked", "reflinked"):
        return [f"{file.name}: {file.way}"]
    if link and file.way == "copied":
        return [f"{file.name}: copied, since --link cannot make a hard link to the base's file from here"]
    return []


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
