"""The attention of every layer of a graph, with its cache inside.

transformers copies the heads of keys and values before attention, once for each head of queries that shares them, and
joins the cache in a node of its own. Both are work at every token that the operator saves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from alignez_bake.onnx_export.attention import NoMatchError, holds_cache, match, replace
from alignez_bake.onnx_export.names import GraphNames

if TYPE_CHECKING:
    import onnx_ir


@dataclass(frozen=True)
class FusedLayers:
    """What became of the layers.

    Attributes:
        replaced: how many have the operator now, and had not before.
        reasons: one line for each layer that has it not, with its index.
    """

    replaced: int
    reasons: tuple[str, ...]


def layers_of(graph: onnx_ir.Graph) -> list[tuple[onnx_ir.Value, onnx_ir.Value]]:
    """`present` keys and values of every layer, each [batch, heads, past + new, width]; empty: there are none."""
    outputs = {value.name: value for value in graph.outputs}
    layers: list[tuple[onnx_ir.Value, onnx_ir.Value]] = []
    while (names := GraphNames(len(layers) + 1).present[-2:])[0] in outputs:
        layers.append((outputs[names[0]], outputs[names[1]]))
    return layers


def fuse_attention(model: onnx_ir.Model, *, softcap: bool) -> FusedLayers:
    """Put the operator in place of every layer's attention that is written as `attention` says; others stay.

    Nodes and initialisers that nothing needs any more go.

    Args:
        model: of opset `ATTENTION_OPSET` or later; changed in place.
        softcap: whether layers whose scores are capped are replaced too.
    """
    import onnx_ir.passes.common as passes  # noqa: PLC0415 - comes with an extra

    replaced, reasons = 0, []
    for index, (keys, values) in enumerate(layers_of(model.graph)):
        if holds_cache(keys, values):
            continue
        try:
            found = match(keys, values)
        except NoMatchError as error:
            reasons.append(f"attention of layer {index}: {error}")
            continue
        if found.softcap and not softcap:
            reasons.append(f"attention of layer {index}: its scores are capped")
            continue
        replace(model.graph, found)
        replaced += 1
    if replaced:
        passes.RemoveUnusedNodesPass()(model)
        passes.TopologicalSortPass()(model)
    return FusedLayers(replaced, tuple(reasons))
