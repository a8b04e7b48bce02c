"""A site whose edits go into the weight and the bias of its map.

With (B, A, Δb) of `low_rank`, W' = W + B A and b' = b + Δb. A graph may hold W as [d_in, d_out], so

    stored' = stored + left @ right      (left, right) = (B, A), or (Aᵀ, Bᵀ) where it is turned around

and that is computed for some rows of `stored` at a time: arrays that fit into the processor's cache are several times
as fast as ones of the size of a weight, and no more than one weight is in memory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from alignez_bake.errors import BadInputError
from alignez_bake.low_rank import low_rank
from alignez_bake.lowering.fold import FoldedTensor
from alignez_bake.onnx_patch.changes import inserted_name
from alignez_bake.safetensors_io.dtypes import numpy_dtype_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from alignez_bake.edit import Edit
    from alignez_bake.edit_plan import Group
    from alignez_bake.low_rank import LowRankChange
    from alignez_bake.onnx_patch.base_graph import BaseGraph
    from alignez_bake.onnx_patch.changes import GraphChanges
    from alignez_bake.onnx_patch.decisions import SitePatch

    Float64Array = NDArray[np.float64]

_BLOCK: Final = 128 * 1024
"""Values that are computed together: a megabyte of float64."""
_COLUMNS: Final = 8 * _BLOCK
"""Likewise, where each block costs a walk through the edits."""


@dataclass(frozen=True)
class FoldedWeight:
    """The edited weight of a map, in the layout in which the map's node reads it.

    Attributes:
        name: of the base's initialiser.
        base: its values, in that layout; mapped from the disk.
        left: see the module, [rows, k]; zeros at rows of other sites.
        right: likewise, [k, columns].
    """

    name: str
    base: NDArray[Any]
    left: Float64Array
    right: Float64Array

    def blocks(self) -> Iterator[tuple[slice, FoldedTensor]]:
        """Some rows at a time: which, and their values before and after.

        Raises:
            BadInputError: values that are not finite.
        """
        rows, columns = self.base.shape
        step = max(1, _BLOCK // max(columns, 1))
        for start in range(0, rows, step):
            part = slice(start, min(start + step, rows))
            base = self.base[part].astype(np.float64)
            _check_finite(base, self.name)
            with np.errstate(over="ignore", invalid="ignore"):  # `rounded` refuses what is not finite
                exact = self.left[part] @ self.right
                exact += base
            yield part, FoldedTensor(self.name, base, exact)

    def rounded(self, dtype: str) -> NDArray[Any]:
        """All values rounded once to a dtype such as "F32".

        Raises:
            BadInputError: a value is not finite or overflows the dtype.
        """
        values: NDArray[Any] = np.empty(self.base.shape, numpy_dtype_of(dtype))
        for part, block in self.blocks():
            values[part] = block.rounded(dtype)
        return values


class FoldedSite(NamedTuple):
    """The edited tensors of a site before they are rounded.

    Attributes:
        weight: of the whole map, other sites of it included.
        bias: [d_out], likewise; of zeros where the map has none; None where it stays as it is.
    """

    weight: FoldedWeight
    bias: FoldedTensor | None


def folded_site(graph: BaseGraph, patch: SitePatch) -> FoldedSite:
    """The formula's weight and bias.

    Raises:
        BadInputError: values of the graph that are not finite.
    """
    graph_map, rows = patch.graph_map, patch.graph_map.rows
    stored = graph.tensors.read(graph_map.weight)
    weight = graph_map.oriented(stored)
    base_bias = np.zeros(graph_map.fused)
    if graph_map.bias is not None:
        base_bias = graph.tensors.read(graph_map.bias).astype(np.float64).reshape(-1)
        _check_finite(base_bias, graph_map.bias)
    with np.errstate(over="ignore", invalid="ignore"):  # of a weight that is not finite, which `blocks` refuses
        change = _change(patch.groups, weight[rows], None if graph_map.bias is None else base_bias[rows])
    b_matrix = np.zeros((graph_map.fused, change.b_matrix.shape[1]))
    b_matrix[rows] = change.b_matrix
    exact_bias = base_bias.copy()
    exact_bias[rows] += change.delta_bias
    node = graph.model.graph.node[graph_map.place]
    folded = (
        FoldedWeight(graph_map.weight, weight, b_matrix, change.a_matrix)
        if _reads_out_in(node)
        else FoldedWeight(graph_map.weight, weight.T, change.a_matrix.T, b_matrix.T)
    )
    name = graph_map.bias or f"the new bias at {patch.site}"
    return FoldedSite(folded, FoldedTensor(name, base_bias, exact_bias) if change.needs_bias else None)


def fold_site(changes: GraphChanges, patch: SitePatch) -> None:
    """Note the changes of one site.

    Raises:
        BadInputError: values that are not finite, or overflow the graph's dtype.
    """
    graph_map, site = patch.graph_map, patch.site
    folded = folded_site(changes.base, patch)
    weight = folded.weight.rounded(graph_map.dtype)
    changes.replace_input(graph_map.place, 1, graph_map.weight, weight, name=f"alignez.{site}.weight")
    if folded.bias is None:
        return
    bias, name = folded.bias.rounded(graph_map.dtype), f"alignez.{site}.bias"
    if graph_map.bias is not None and graph_map.bias_place is not None:
        shaped = bias.reshape(changes.base.tensors.entry(graph_map.bias).shape)
        changes.replace_input(graph_map.bias_place, graph_map.bias_input, graph_map.bias, shaped, name=name)
        return
    name = changes.new_initialiser(name, bias)
    raw = inserted_name(str(site), "unbiased")
    changes.outputs[graph_map.place] = raw
    add = changes.node("Add", (raw, name), inserted_name(str(site), "Add"))
    add.output[0] = graph_map.output
    changes.after.setdefault(graph_map.place, []).append(add)


def _change(groups: Sequence[Group], weight: NDArray[Any], bias: Float64Array | None) -> LowRankChange:
    """`low_rank` of some columns of W at a time, for the same reason as `FoldedWeight.blocks`.

    A column of A is made of the same column of W, and of the same row of R where an edit reads the input; B and Δb are
    the same whatever the columns.
    """
    d_out, d_in = weight.shape
    step = max(1, _COLUMNS // max(d_out, 1))
    parts = []
    for start in range(0, d_in, step):
        part = slice(start, min(start + step, d_in))
        of_part = [group._replace(edits=tuple(_at_columns(edit, part) for edit in group.edits)) for group in groups]
        parts.append(low_rank(of_part, weight[:, part], bias))
    return parts[0]._replace(a_matrix=np.hstack([entry.a_matrix for entry in parts]))


def _at_columns(edit: Edit, part: slice) -> Edit:
    if edit.reads != "input" or edit.right is None:
        return edit
    return replace(edit, right=edit.right[part])


def _reads_out_in(node: Any) -> bool:  # noqa: ANN401 - a NodeProto
    """Whether a map's node wants [d_out, d_in]: Gemm that transposes; a MatMul multiplies from the right."""
    return any(attribute.name == "transB" and attribute.i for attribute in node.attribute)


def _check_finite(values: Float64Array, name: str) -> None:
    if not np.isfinite(values).all():
        raise BadInputError(f"{name} holds values that are not finite: the graph is damaged")
