"""A site whose edits go into the weight and the bias of its map."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from alignez_bake.errors import BadInputError
from alignez_bake.low_rank import low_rank
from alignez_bake.lowering.fold import FoldedTensor
from alignez_bake.onnx_patch.changes import inserted_name

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from alignez_bake.onnx_patch.base_graph import BaseGraph
    from alignez_bake.onnx_patch.changes import GraphChanges
    from alignez_bake.onnx_patch.decisions import SitePatch

    Float64Array = NDArray[np.float64]


class FoldedSite(NamedTuple):
    """The edited tensors of a site before they are rounded, as [d_out, d_in] and [d_out], whatever the graph's layout.

    Attributes:
        weight: of the whole map, rows of other sites included.
        bias: likewise; of zeros where the map has none; None where it stays as it is.
    """

    weight: FoldedTensor
    bias: FoldedTensor | None


def folded_site(graph: BaseGraph, patch: SitePatch) -> FoldedSite:
    """The formula's weight and bias in float64.

    Raises:
        BadInputError: values of the graph that are not finite.
    """
    graph_map = patch.graph_map
    weight = graph_map.oriented(_float64(graph, graph_map.weight))
    bias = None if graph_map.bias is None else _float64(graph, graph_map.bias).reshape(-1)
    rows = graph_map.rows
    exact_weight = weight.copy()
    exact_bias = np.zeros(graph_map.fused) if bias is None else bias.copy()
    with np.errstate(over="ignore", invalid="ignore"):  # `rounded` refuses what is not finite
        change = low_rank(patch.groups, weight[rows], None if bias is None else bias[rows])
        exact_weight[rows] += change.b_matrix @ change.a_matrix
        exact_bias[rows] += change.delta_bias
    base_bias = np.zeros(graph_map.fused) if bias is None else bias
    name = graph_map.bias or f"the new bias at {patch.site}"
    return FoldedSite(
        FoldedTensor(graph_map.weight, weight, exact_weight),
        FoldedTensor(name, base_bias, exact_bias) if change.needs_bias else None,
    )


def fold_site(changes: GraphChanges, patch: SitePatch) -> None:
    """Note the changes of one site.

    Raises:
        BadInputError: values that are not finite, or overflow the graph's dtype.
    """
    graph_map, site = patch.graph_map, patch.site
    folded = folded_site(changes.base, patch)
    weight = folded.weight.rounded(graph_map.dtype)
    node = changes.base.model.graph.node[graph_map.place]
    # Where a Transpose lies between, the node itself reads another layout than the one that is stored.
    values = np.ascontiguousarray(weight if _transposes(node) else weight.T)
    changes.replace_input(graph_map.place, 1, graph_map.weight, values, site=site)
    if folded.bias is None:
        return
    bias = folded.bias.rounded(graph_map.dtype)
    if graph_map.bias is not None and graph_map.bias_place is not None:
        shaped = bias.reshape(changes.base.tensors.entry(graph_map.bias).shape)
        changes.replace_input(graph_map.bias_place, graph_map.bias_input, graph_map.bias, shaped, site=site)
        return
    name = changes.new_initialiser(f"alignez.{site}.bias", bias)
    raw = inserted_name(str(site), "unbiased")
    changes.outputs[graph_map.place] = raw
    add = changes.node("Add", (raw, name), inserted_name(str(site), "Add"))
    add.output[0] = graph_map.output
    changes.after.setdefault(graph_map.place, []).append(add)


def _transposes(node: Any) -> bool:  # noqa: ANN401 - a NodeProto
    return any(attribute.name == "transB" and attribute.i for attribute in node.attribute)


def _float64(graph: BaseGraph, name: str) -> Float64Array:
    values = graph.tensors.read(name).astype(np.float64)
    if not np.isfinite(values).all():
        raise BadInputError(f"{graph.path}: {name} holds values that are not finite: the graph is damaged")
    return values
