"""A graph of ours with fused operators."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from alignez_bake.errors import BadInputError
from alignez_bake.onnx_export.attention import ATTENTION_OPSET
from alignez_bake.onnx_export.attention_layers import fuse_attention, layers_of
from alignez_bake.onnx_export.saving import check_target, data_file
from alignez_bake.onnx_optimise.norms import fuse_norms
from alignez_bake.onnx_optimise.rotary import fuse_rotary
from alignez_bake.runtime.external_data import check_external_data
from alignez_bake.runtime.graph_file import read_graph_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import onnx_ir

OLDEST_OPSET: Final = 18
"""The oldest that onnxscript's converter of versions reads."""
FUSED_OPERATORS: Final = (
    "Attention",
    "RotaryEmbedding",
    "SimplifiedLayerNormalization",
    "SkipSimplifiedLayerNormalization",
    "SkipLayerNormalization",
)
_OTHER_NAMES: Final = {"RMSNormalization": "SimplifiedLayerNormalization"}


@dataclass(frozen=True)
class Optimised:
    """What became of a graph.

    Attributes:
        fused: how many nodes of each fused operator the graph has, of `FUSED_OPERATORS`; those it has none of are
            absent.
        reasons: one line for each fusion that was refused, with its layer.
        nodes_before, nodes_after: of the graph.
    """

    fused: Mapping[str, int]
    reasons: tuple[str, ...]
    nodes_before: int
    nodes_after: int


def optimise_graph(source: Path, target: Path) -> Optimised:
    """Write a graph again with fused operators; inputs, outputs, axes and values stay.

    Weights are never held in memory: they go from file to file, tensor by tensor, and lie in `<target>_data` if those
    of the source lie outside it.

    Args:
        source: a graph as `export_graph` writes it, folded or inserted edits within.
        target: the file to write, `*.onnx`.

    Returns:
        What was fused, and what was not and why.

    Raises:
        BadInputError: a target that exists, packages that are missing, a file that is no graph or whose data are
            missing or lie elsewhere, an opset that is too old, a graph without a cache of ours, or one in which nothing
            could be fused.
    """
    check_target(target)
    check_external_data(read_graph_file(source))
    import onnx_ir  # noqa: PLC0415 - comes with an extra
    import onnx_ir.passes.common as passes  # noqa: PLC0415
    from onnxscript.version_converter import convert_version  # noqa: PLC0415

    model = onnx_ir.load(source)
    before = _counted(model.graph)
    if not layers_of(model.graph):
        raise BadInputError(f"{source} has no outputs present.0.key and present.0.value: export the model again")
    opset = model.graph.opset_imports[""]
    if opset < OLDEST_OPSET:
        raise BadInputError(
            f"{source} has opset {opset}, and {OLDEST_OPSET} is the oldest that is read: export it again"
        )
    if opset < ATTENTION_OPSET:
        convert_version(model, ATTENTION_OPSET)
    passes.CommonSubexpressionEliminationPass()(model)
    fuse_norms(model)
    fuse_rotary(model.graph)
    passes.RemoveUnusedNodesPass()(model)
    layers = fuse_attention(model, softcap=True)
    passes.TopologicalSortPass()(model)
    after = _counted(model.graph)
    # Attention may have been there before, with the cache or without it.
    if not layers.replaced and not any(after[name] > before[name] for name in FUSED_OPERATORS):
        reasons = f" ({'; '.join(layers.reasons)})" if layers.reasons else ""
        raise BadInputError(f"{source}: nothing could be fused{reasons}: use the graph as it is")
    fused = {name: after[name] for name in FUSED_OPERATORS if after[name]}
    model.graph.opset_imports["com.microsoft"] = 1
    external = any(isinstance(value.const_value, onnx_ir.ExternalTensor) for value in model.graph.initializers.values())
    onnx_ir.save(model, target, external_data=data_file(target).name if external else None)
    return Optimised(fused, layers.reasons, before.total(), after.total())


def _counted(graph: onnx_ir.Graph) -> Counter[str]:
    """Nodes by operator; opset 23's name for the RMS norm counts as the one that it gets here."""
    return Counter(_OTHER_NAMES.get(node.op_type, node.op_type) for node in graph)
