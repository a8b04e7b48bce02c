"""Level `forward` of a patched graph whose model is at hand: the hooked model is what it must run as, too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alignez_bake.certificate.graph import certify_graph
from alignez_bake.certificate.verdict import main_figures, worst
from alignez_bake.errors import BadInputError
from alignez_bake.exporters.baked_model import baked_checkpoint, load_baked
from alignez_bake.exporters.checkpoint import CheckpointExporter
from alignez_bake.exporters.dtype import FILE_DTYPES
from alignez_bake.exporters.onnx import providers_for
from alignez_bake.exporters.output_folder import scratch_place
from alignez_bake.exporters.protocol import ExportSettings
from alignez_bake.lowering.lower import lower
from alignez_bake.runtime.session import open_session

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from alignez_bake.certificate.graph_figures import GraphCertificate
    from alignez_bake.certificate.verdict import Level, Verdict
    from alignez_bake.edit_plan import EditPlan
    from alignez_bake.model_folder import ModelFolder
    from alignez_bake.onnx_patch.base_graph import BaseGraph
    from alignez_bake.onnx_patch.decisions import SitePatch
    from alignez_bake.onnx_patch.forward_level import GraphForwardLevel
    from alignez_bake.progress import Progress


@dataclass(frozen=True)
class PatchedForwardLevel:
    """Both proofs of a patched graph.

    Attributes:
        sites: the patched graph beside the base graph and the formula, site by site.
        model: it beside the hooked and the baked model, end to end; or why it is not held to their bounds.
    """

    sites: GraphForwardLevel
    model: GraphCertificate | str

    @property
    def level(self) -> Level:
        """Which level."""
        return "forward"

    @property
    def verdict(self) -> Verdict:
        """The worse of the two."""
        verdicts = [self.sites.verdict, *([] if isinstance(self.model, str) else [self.model.verdict])]
        return worst(verdicts) or "failed"

    @property
    def reasons(self) -> tuple[str, ...]:
        """Those of both."""
        return (*self.sites.reasons, *(() if isinstance(self.model, str) else self.model.reasons))

    def to_json(self) -> dict[str, Any]:
        """The figures of the sites, and under `model` those of the comparison with the model."""
        model = {"not_compared": self.model} if isinstance(self.model, str) else self.model.to_json()
        figures = {**self.sites.to_json(), "model": model}
        return {**figures, "verdict": self.verdict, "reasons": list(self.reasons)}

    def main_figures(self) -> list[tuple[str, str]]:
        """Those of both."""
        if isinstance(self.model, str):
            return [*main_figures(self.sites), ("not compared with the model", self.model)]
        return [*main_figures(self.sites), *main_figures(self.model)]


def _incomparable(graph: BaseGraph, patches: Sequence[SitePatch]) -> str | None:
    """Why a graph cannot be held to the bounds of its model; None if it can."""
    if graph.from_builder:
        return "onnxruntime-genai's graphs take no rows that are padded on the left"
    if any(patch.graph_map.quantised for patch in patches):
        return "its weights have few bits, and the model's have not"
    return None


def certify_against_model(
    base: ModelFolder,
    base_graph: BaseGraph,
    plan: EditPlan,
    patches: Sequence[SitePatch],
    graph: Path,
    *,
    device: str,
    trust_remote_code: bool,
    progress: Progress,
) -> GraphCertificate | str:
    """Run the patched graph beside the hooked and the baked model, in the dtype of the graph's weights.

    Args:
        base: the model that the graph was made of.
        base_graph: the graph that was patched.
        plan: the edits.
        patches: what was done.
        graph: the patched `.onnx` file.
        device: where all run.
        trust_remote_code: passed to transformers' loader.
        progress: counts tensors and prompts.

    Returns:
        What was found; or why the graph cannot be held to the bounds of its model.

    Raises:
        BadInputError: a model that does not load, or a graph that does not run.
    """
    reason = _incomparable(base_graph, patches)
    if reason is not None:
        return reason
    file_dtype = patches[0].graph_map.dtype
    dtype = next((name for name, spelling in FILE_DTYPES.items() if spelling == file_dtype), None)
    lowering = lower(plan, base, CheckpointExporter(), code=True, dtype=file_dtype)
    try:
        lowering.require_complete()
        CheckpointExporter().check(base, lowering, ExportSettings(dtype))
    except BadInputError as error:
        return f"no baked model to compare with: {error}"
    session = open_session(graph, providers_for(device))
    with baked_checkpoint(base, lowering, scratch_place(graph.parent), dtype=dtype, progress=progress) as folder:
        return certify_graph(
            base,
            lowering,
            session,
            load_baked(base, lowering, folder, device=device),
            device=device,
            trust_remote_code=trust_remote_code,
            progress=progress,
        )
