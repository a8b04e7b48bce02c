"""GGUF files for llama.cpp: a LoRA adapter, a control vector, or both, beside a base that the user has as GGUF.

`adapter.gguf` holds what linear edits change in maps, `control_vector.gguf` what joins the residual stream. A plan
can need both; `gguf_contents` says how they add up to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from alignez_bake.exporters.gguf_certificate import certify_gguf
from alignez_bake.exporters.gguf_contents import contents_bytes, gguf_contents, gguf_refusal
from alignez_bake.exporters.gguf_files import ADAPTER_FILE, CONTROL_VECTOR_FILE, write_control_vector, write_lora
from alignez_bake.exporters.gguf_names import gguf_package
from alignez_bake.exporters.protocol import Exported, RunsElsewhere

from alignez_bake.errors import BadInputError

if TYPE_CHECKING:
    from pathlib import Path

    from alignez_bake.exporters.protocol import ExportSettings

    from alignez_bake.certificate.tensors import TensorsCertificate
    from alignez_bake.edit import Edit
    from alignez_bake.lowering.decide import Lowering, Refusal, Route
    from alignez_bake.lowering.slot import Slot
    from alignez_bake.model_folder import ModelFolder
    from alignez_bake.progress import Progress

_METADATA_BYTES: Final = 256 * 1024  # names, keys and padding of both files


class GgufExporter(RunsElsewhere):
    """Writes linear edits of maps as a LoRA adapter, and what is constant as a control vector."""

    name = "gguf"
    routes: frozenset[Route] = frozenset({"fold", "carry"})
    exactness = "exact, rounded once to float32"
    cost = "two thin products a map and token, or a vector added behind a layer"
    card_library = "gguf"
    held = (
        "GGUF files, which llama.cpp runs and transformers does not: level 'forward' is not for them; bake with "
        "--verify tensors, verify with --level tensors"
    )

    def supports(self, edit: Edit, slot: Slot) -> Refusal | None:
        """None if a LoRA adapter or a control vector of llama.cpp can carry the edit."""
        return gguf_refusal(edit, slot)

    def check(self, base: ModelFolder, lowering: Lowering, settings: ExportSettings) -> None:
        """Refuse what `supports` cannot see; nothing but headers is read.

        Raises:
            BadInputError: gguf is missing, or another dtype than float32.
        """
        gguf_package()
        del base, lowering
        if settings.dtype not in (None, "float32"):
            raise BadInputError(f"--dtype {settings.dtype!r} with --as gguf: its files are float32, so leave it out")

    def bytes_needed(self, base: ModelFolder, lowering: Lowering, settings: ExportSettings) -> int:
        """About how many bytes both files take."""
        del settings
        return contents_bytes(base, lowering.plan) + _METADATA_BYTES

    def export(
        self, base: ModelFolder, lowering: Lowering, out: Path, settings: ExportSettings, progress: Progress
    ) -> Exported:
        """Write `adapter.gguf`, `control_vector.gguf`, or both into `out`; neither where the edits change nothing.

        Raises:
            BadInputError: as `check`; values that float32 cannot hold.
        """
        lowering.require_complete()
        self.check(base, lowering, settings)
        contents = gguf_contents(base, lowering.plan, progress)
        if contents.maps:
            pairs = [edited.rounded() for edited in contents.maps]
            write_lora(out / ADAPTER_FILE, base.architecture, base.config, pairs, alpha=contents.rank)
        if contents.shifts:
            write_control_vector(out / CONTROL_VECTOR_FILE, base.architecture, contents.rounded_shifts())
        return Exported()

    def certify_tensors(
        self, base: ModelFolder, lowering: Lowering, out: Path, progress: Progress
    ) -> TensorsCertificate:
        """Both files, read back from disk, against the formula."""
        return certify_gguf(base, lowering.plan, out, progress)
