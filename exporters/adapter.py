"""A LoRA adapter in PEFT's format: every linear edit of a linear map, exactly, beside a base that stays as it is.

It is computed from the base's weights, never fitted. `PeftModel.from_pretrained` loads it, it merges to the folded
weights, and it can be dialled while the model runs. docs/exporters.md says what servers make of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignez_bake.exporters.adapter_pairs import adapter_bytes, adapter_layout
from alignez_bake.exporters.peft_files import (
    CONFIG_FILE,
    METADATA,
    WEIGHTS_FILE,
    config_of,
    encode_config,
    encode_pair,
)
from alignez_bake.exporters.protocol import Exported, NeedsNoModel

from alignez_bake.errors import BadInputError
from alignez_bake.lowering.decide import Refusal, fold_refusal
from alignez_bake.safetensors_io.writer import write_tensors

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from alignez_bake.exporters.adapter_certificate import AdapterCertificate
    from alignez_bake.exporters.protocol import ExportSettings, RunningResult
    from numpy.typing import NDArray

    from alignez_bake.certificate.verdict import Level
    from alignez_bake.edit import Edit
    from alignez_bake.lowering.decide import Lowering, Route
    from alignez_bake.lowering.slot import Slot
    from alignez_bake.model_folder import ModelFolder
    from alignez_bake.progress import Progress


class AdapterExporter(NeedsNoModel):
    """Writes `adapter_config.json` and `adapter_model.safetensors`."""

    name = "adapter"
    routes: frozenset[Route] = frozenset({"fold"})
    exactness = "exact, factors rounded once to F32"
    cost = (
        "two thin matrix products a map and token, none once merged; vLLM's --max-lora-rank must be at least the "
        "largest sum of ranks at one site"
    )
    card_library = "peft"
    highest_level: Level = "forward"

    def supports(self, edit: Edit, slot: Slot) -> Refusal | None:
        """None if the edit is a low-rank change of a linear map."""
        if slot.kind == "embedding":
            return Refusal("PEFT wraps an embedding in another way, which servers do not load")
        if slot.kind == "experts" and slot.bias is not None:
            return Refusal("every expert has a bias, which the edit changes, and PEFT adds none to stacked experts")
        return fold_refusal(edit, slot)

    def check(self, base: ModelFolder, lowering: Lowering, settings: ExportSettings) -> None:
        """Refuse a dtype, and constants that PEFT could not merge.

        Raises:
            BadInputError: what is refused, with the way out.
        """
        if settings.dtype not in (None, "float32"):
            raise BadInputError(
                f"--dtype {settings.dtype} is not for an adapter, whose factors are float32: leave it out; users "
                "choose the base's dtype when they load it"
            )
        lowering.require_complete()
        adapter_layout(base, lowering)

    def bytes_needed(self, base: ModelFolder, lowering: Lowering, settings: ExportSettings) -> int:
        """The size of the pairs, from shapes."""
        del settings
        layout = adapter_layout(base, lowering)
        shapes = [(module.d_out, module.d_in) for module in layout.modules for _ in module.weights]
        return adapter_bytes(shapes, layout.rank, constants=layout.constants)

    def export(
        self, base: ModelFolder, lowering: Lowering, out: Path, settings: ExportSettings, progress: Progress
    ) -> Exported:
        """Write the adapter; arguments and errors as in `Exporter`."""
        self.check(base, lowering, settings)
        layout = adapter_layout(base, lowering)
        tensors: dict[str, NDArray[np.float32]] = {}
        with progress.task("computing pairs", len(layout.modules)) as advance:
            for module in layout.modules:
                pair = module.pair(layout.rank, base.tensors)
                tensors.update(encode_pair(module, pair, constants=layout.constants))
                advance()
        write_tensors(out / WEIGHTS_FILE, tensors, METADATA)
        (out / CONFIG_FILE).write_text(encode_config(config_of(base, layout, settings.base_name)), encoding="utf-8")
        return Exported()

    def certify_tensors(
        self, base: ModelFolder, lowering: Lowering, out: Path, progress: Progress
    ) -> AdapterCertificate:
        """Every pair against the formula, read back from disk."""
        from alignez_bake.exporters.adapter_certificate import certify_adapter  # noqa: PLC0415 - only where asked for

        return certify_adapter(base, lowering, out, progress)

    def reload(
        self, base: ModelFolder, out: Path, lowering: Lowering, *, device: str, trust_remote_code: bool
    ) -> RunningResult:
        """The base with the adapter in place, as PEFT loads it.

        Raises:
            BadInputError: PEFT is missing or does not take the adapter whole, or the base cannot be loaded.
        """
        from alignez_bake.exporters.peft_loading import load_adapted  # noqa: PLC0415 - torch, transformers, peft
        from alignez_bake.exporters.torch_result import TorchResult  # noqa: PLC0415 - likewise

        loaded = load_adapted(base, out, device=device, trust_remote_code=trust_remote_code)
        return TorchResult(loaded, base, lowering, device, trust_remote_code=trust_remote_code)
