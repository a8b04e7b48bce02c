"""One ONNX graph that runs aligned wherever ONNX Runtime does: no torch, no hooks, the cache inside.

Edits that fold are in the initialisers, others are nodes: a graph needs no code of ours for them. Config and tokenizer
lie beside it, so that optimum's `ORTModelForCausalLM` and our own runner load the folder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from alignez_bake.exporters.base_files import DTYPE_KEYS
from alignez_bake.exporters.checkpoint import CheckpointExporter
from alignez_bake.exporters.onnx_record import recorded_settings
from alignez_bake.exporters.required_packages import require_packages

from alignez_bake.errors import BadInputError
from alignez_bake.lowering.decide import Refusal, fold_refusal
from alignez_bake.onnx_export.opsets import NEWEST_OPSET, OLDEST_OPSET
from alignez_bake.runtime.dtypes import supported_dtypes

if TYPE_CHECKING:
    from pathlib import Path

    from alignez_bake.exporters.onnx_result import GraphResult
    from alignez_bake.exporters.protocol import Exported, ExportSettings, Option

    from alignez_bake.certificate.verdict import Level, LevelCertificate
    from alignez_bake.edit import Edit
    from alignez_bake.lowering.decide import Lowering, Route
    from alignez_bake.lowering.slot import Slot
    from alignez_bake.model_folder import ModelFolder
    from alignez_bake.progress import Progress

GRAPH_FILE: Final = "model.onnx"
_PACKAGES: Final = ("onnx", "onnxscript", "onnxruntime")
_INSTALL: Final = "pip install 'alignez-bake[onnx,cpu]', or 'alignez-bake[onnx,gpu]' on a machine with CUDA"


class OnnxExporter:
    """Writes `model.onnx`, its external data, and what loaders want beside it."""

    name = "onnx"
    routes: frozenset[Route] = frozenset({"fold", "rehome", "insert"})
    exactness = "exact, rounded once"
    cost = "none: same graph"
    card_library = "onnx"
    highest_level: Level = "forward"
    default_level: Level = "forward"
    options: frozenset[Option] = frozenset({"opset", "external_data", "optimise", "weight_bits"})
    inserts_need_code = False
    streams = False
    reads_fp8 = False

    def supports(self, edit: Edit, slot: Slot) -> Refusal | None:
        """None if the edit folds at this slot."""
        return fold_refusal(edit, slot)

    def check(self, base: ModelFolder, lowering: Lowering, settings: ExportSettings) -> None:
        """Refuse packages that are missing, dtypes that nothing here runs, and what a checkpoint refuses.

        Raises:
            BadInputError: what is refused, with the way out.
        """
        require_packages(self.name, _PACKAGES, _INSTALL)
        _check_runs(base, settings)
        if settings.opset is not None and not OLDEST_OPSET <= settings.opset <= NEWEST_OPSET:
            raise BadInputError(f"--opset {settings.opset} cannot be written: use {OLDEST_OPSET} to {NEWEST_OPSET}")
        CheckpointExporter().check(base, lowering, settings)

    def bytes_needed(self, base: ModelFolder, lowering: Lowering, settings: ExportSettings) -> int:
        """The graph, and beside it for a while the checkpoint that it is made of, and what it is optimised from."""
        copies = 2 + settings.optimise + (settings.weight_bits is not None)
        return copies * CheckpointExporter().bytes_needed(base, lowering, settings)

    def export(
        self, base: ModelFolder, lowering: Lowering, out: Path, settings: ExportSettings, progress: Progress
    ) -> Exported:
        """Write the graph; arguments and errors as in `Exporter`."""
        from alignez_bake.exporters.onnx_writing import write_graph_folder  # noqa: PLC0415 - torch, transformers

        lowering.require_complete()
        return write_graph_folder(base, lowering, out, settings, progress)

    def certify_tensors(self, base: ModelFolder, lowering: Lowering, out: Path, progress: Progress) -> LevelCertificate:
        """The graph's initialisers against the baked model's tensors."""
        from alignez_bake.exporters.onnx_certificate import certify_graph_folder  # noqa: PLC0415 - needs onnx

        return certify_graph_folder(base, lowering, out, recorded_settings(out, self.name), progress)

    def reload(
        self, base: ModelFolder, out: Path, lowering: Lowering, *, device: str, trust_remote_code: bool
    ) -> GraphResult:
        """The graph in ONNX Runtime.

        Raises:
            BadInputError: a device that ONNX Runtime has no provider for.
        """
        from alignez_bake.exporters.onnx_result import GraphResult  # noqa: PLC0415 - imports torch

        providers_for(device)
        settings = recorded_settings(out, self.name)
        return GraphResult(out / GRAPH_FILE, base, lowering, settings, device, trust_remote_code=trust_remote_code)


def _check_runs(base: ModelFolder, settings: ExportSettings) -> None:
    """Refuse what could not be verified, before the long work: a device or a dtype that ONNX Runtime does not have.

    Raises:
        BadInputError: such a device, or such a dtype on it.
    """
    if settings.runs_on is None:
        return
    stored = next((base.config[key] for key in DTYPE_KEYS if base.config.get(key) is not None), "float32")
    provider, dtype = providers_for(settings.runs_on)[0], settings.dtype or str(stored)
    known = supported_dtypes(provider)
    if known is not None and dtype not in known:
        whose = "the base's own" if settings.dtype is None else f"--dtype {dtype}"
        raise BadInputError(
            f"a graph in {dtype} ({whose}) cannot be verified: ONNX Runtime's {provider} provider computes in "
            f"{', '.join(known)}: use --dtype with one of them, or --device cuda; --verify tensors writes it unrun"
        )


def providers_for(device: str) -> tuple[str, ...]:
    """ONNX Runtime's providers for a device by its name in torch; the CPU takes what CUDA has no kernel for.

    Raises:
        BadInputError: a device without a provider.
    """
    kind = device.partition(":")[0]
    if kind == "cpu":
        return ("cpu",)
    if kind == "cuda":
        return (device, "cpu")
    raise BadInputError(f"--device {device}: graphs run on cpu or cuda here")
