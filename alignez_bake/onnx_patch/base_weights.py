"""Whether a graph was made of a model: the edited maps' weights are the model's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from alignez_bake.errors import BadInputError
from alignez_bake.lowering.slot import find_slot
from alignez_bake.safetensors_io.dtypes import cast_once, numpy_dtype_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from alignez_bake.model_folder import ModelFolder
    from alignez_bake.onnx_patch.base_graph import BaseGraph
    from alignez_bake.onnx_patch.decisions import SitePatch


def check_weights(graph: BaseGraph, base: ModelFolder, patches: Sequence[SitePatch]) -> None:
    """Compare weight and bias of every edited map with the model's, rounded to the graph's dtype, bit for bit.

    Of a quantised map only the shapes can be compared.

    Raises:
        BadInputError: other values, another shape, or a bias that only one of them has.
    """
    for patch in patches:
        graph_map, slot = patch.graph_map, find_slot(base, patch.site)
        place = f"site {patch.site}: {graph_map.weight} of {graph.path}"
        if (slot.d_out, slot.d_in) != (graph_map.d_out, graph_map.d_in):
            raise BadInputError(
                f"{place} is a map [{graph_map.d_out}, {graph_map.d_in}], and the base's [{slot.d_out}, {slot.d_in}]: "
                "the graph was made of another base"
            )
        if graph_map.quantised:
            continue
        theirs = slot.weight_rows(base.tensors.read(slot.weight))
        mine = graph_map.oriented(graph.tensors.read(graph_map.weight))[graph_map.rows]
        _check_equal(mine, theirs, graph_map.dtype, f"{place} differs from {slot.weight}")
        if (slot.bias is None) != (graph_map.bias is None):
            there, missing = ("graph", "base") if slot.bias is None else ("base", "graph")
            raise BadInputError(f"{place}: the {there} has a bias and the {missing} has none: another base")
        if slot.bias is not None and graph_map.bias is not None:
            own = graph.tensors.read(graph_map.bias).reshape(-1)[graph_map.rows]
            theirs = base.tensors.read(slot.bias)[slot.rows]
            _check_equal(own, theirs, graph_map.dtype, f"{place}: its bias differs from {slot.bias}")


def _check_equal(mine: NDArray[Any], theirs: NDArray[Any], dtype: str, problem: str) -> None:
    rounded = cast_once(theirs, numpy_dtype_of(dtype))
    if mine.shape != rounded.shape or mine.dtype != rounded.dtype or not np.array_equal(mine, rounded):
        raise BadInputError(f"{problem} of the base that was named: the graph was made of another base")
