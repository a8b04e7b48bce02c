"""A site whose edits become nodes behind its map, by the same formula.

With row vectors, y [..., d] of the map and r of what an edit reads,

    MatMul r R   (Add s)   (Relu | Tanh)   MatMul · (strength L)ᵀ   (Add strength c)   (Mul mask)   Add y

so at most four nodes, one more each for s and c, and one for `last`, whose mask all sites share. Groups are parallel,
y' = y + Σ_o w_o (E_o(y) - y). The only edit of a group takes w_o into L and c. Of a longer group E_o(y) - y is the
sum of what its edits add, in order, which is then multiplied by w_o.

Of a fused map the site is some of its outputs. L, R of what reads the output, and c then have zeros at all others, so
that nothing has to be cut apart and joined again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from alignez_bake.errors import BadInputError
from alignez_bake.onnx_patch.changes import inserted_name
from alignez_bake.onnx_patch.dtypes import FLOAT
from alignez_bake.onnx_patch.last_row import last_row_mask
from alignez_bake.safetensors_io.dtypes import cast_once, numpy_dtype_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from alignez_bake.edit import Edit, Gate
    from alignez_bake.onnx_patch.changes import GraphChanges
    from alignez_bake.onnx_patch.decisions import SitePatch

GATE_OPERATORS: Final[Mapping[Gate, str | None]] = {"identity": None, "relu": "Relu", "tanh": "Tanh"}


def insert_site(changes: GraphChanges, patch: SitePatch) -> None:
    """Note the nodes of one site, between the node that computes y and those that read it.

    y gets another name, and what the last node computes the name of y, so that no reader has to be told.

    Raises:
        BadInputError: values that overflow the graph's dtype, or a value whose number of axes nothing tells.
    """
    _Insertion(changes, patch).run()


def raw_output(patch: SitePatch) -> str:
    """Name of the map's own output, before the inserted edits."""
    return inserted_name(str(patch.site), "unedited")


class _Insertion:
    def __init__(self, changes: GraphChanges, patch: SitePatch) -> None:
        self.changes, self.patch = changes, patch
        graph_map = patch.graph_map
        self.place = graph_map.place if graph_map.bias_place is None else graph_map.bias_place
        self.nodes: list[Any] = changes.after.setdefault(self.place, [])
        self.raw = raw_output(patch)
        # A weight of 0 or a strength of 0 changes nothing, and needs no node.
        self.groups = [
            (weight, [(index, edit) for index, edit in enumerate(edits) if edit.strength != 0.0])
            for _, weight, edits in patch.groups
            if weight != 0.0
        ]

    def run(self) -> None:
        groups = [(weight, edits) for weight, edits in self.groups if edits]
        if not groups:
            return
        self.changes.outputs[self.place] = self.raw
        total = self.raw
        for number, (weight, edits) in enumerate(groups):
            alone = len(groups) == 1 and weight == 1.0
            total = self._chain(number, edits) if alone else self._effect(number, weight, edits, total)
        self.nodes[-1].output[0] = self.patch.graph_map.output

    def _chain(self, number: int, edits: list[tuple[int, Edit]]) -> str:
        """E(y) of the only group, of weight 1."""
        current = self.raw
        for index, edit in edits:
            current = self._add(
                "Add", (current, self._delta(number, index, edit, current, 1.0)), number, index, "edited"
            )
        return current

    def _effect(self, number: int, weight: float, edits: list[tuple[int, Edit]], total: str) -> str:
        """`total` + w (E(y) - y)."""
        own_weight = weight if len(edits) == 1 else 1.0
        current, effect = self.raw, ""
        for place, (index, edit) in enumerate(edits):
            delta = self._delta(number, index, edit, current, own_weight)
            effect = self._add("Add", (effect, delta), number, index, "effect") if effect else delta
            if any(later.reads == "output" and later.left is not None for _, later in edits[place + 1 :]):
                current = self._add("Add", (current, delta), number, index, "edited")
        if len(edits) > 1 and weight != 1.0:
            factor = self._initialiser(f"{number}.weight", np.asarray(weight), "the weight of an objective")
            effect = self._add("Mul", (effect, factor), number, len(edits), "weighed")
        return self._add("Add", (total, effect), number, len(edits), "edited")

    def _delta(self, number: int, index: int, edit: Edit, current: str, weight: float) -> str:
        """Name of what one edit adds, times `weight`; [d] of a pure shift."""
        graph_map, scale = self.patch.graph_map, edit.strength * weight
        delta = ""
        if edit.left is not None and edit.right is not None:
            read = {"output": current, "input": graph_map.input, "block": self.patch.block}[edit.reads]
            assert read is not None
            right = self._widened(edit.right) if edit.reads == "output" else edit.right
            left = scale * self._widened(edit.left.astype(np.float64))
            delta = self._product(number, index, read, right, "right")
            if edit.offset is not None and edit.offset.any():
                delta = self._add(
                    "Add", (delta, self._held(number, index, edit.offset, "offset")), number, index, "shifted"
                )
            gate = GATE_OPERATORS[edit.gate]
            delta = self._add(gate, (delta,), number, index, "gated") if gate else delta
            delta = self._product(number, index, delta, left.T, "left")
        if edit.bias is not None and (edit.bias.any() or not delta):
            bias = self._held(number, index, scale * self._widened(edit.bias.astype(np.float64)), "bias")
            delta = self._add("Add", (delta, bias), number, index, "constant") if delta else bias
        if edit.positions == "last":
            delta = self._add("Mul", (delta, self._mask()), number, index, "last")
        return delta

    def _product(self, number: int, index: int, read: str, matrix: NDArray[Any], name: str) -> str:
        held = self._held(number, index, matrix, name)
        return self._add("MatMul", (read, held), number, index, f"{name}_product")

    def _add(self, operator: str, inputs: tuple[str, ...], number: int, index: int, name: str) -> str:
        full = inserted_name(str(self.patch.site), f"{number}.{index}", name)
        self.nodes.append(self.changes.node(operator, inputs, full))
        return full

    def _held(self, number: int, index: int, values: NDArray[Any], name: str) -> str:
        return self._initialiser(f"{number}.{index}.{name}", values, f"edit at {self.patch.site}: its {name}")

    def _initialiser(self, name: str, values: NDArray[Any], what: str) -> str:
        dtype = self.patch.graph_map.dtype
        stored = cast_once(values.astype(np.float64), numpy_dtype_of(dtype))
        if not np.isfinite(stored.astype(np.float64)).all():
            raise BadInputError(f"{what} overflows {dtype}, the dtype of the graph: use a smaller strength")
        return self.changes.new_initialiser(f"alignez.{self.patch.site}.{name}", np.ascontiguousarray(stored))

    def _widened(self, array: NDArray[Any]) -> NDArray[Any]:
        """Rows of the site within rows of the whole map, zeros elsewhere."""
        graph_map = self.patch.graph_map
        if graph_map.d_out == graph_map.fused:
            return array
        wide = np.zeros((graph_map.fused, *array.shape[1:]), array.dtype)
        wide[graph_map.rows] = array
        return wide

    def _mask(self) -> str:
        graph_map = self.patch.graph_map
        node = self.changes.base.model.graph.node[self.place]
        rank = 2 if node.op_type == "Gemm" else self.changes.base.rank(graph_map.output)
        if rank not in (2, 3):
            raise BadInputError(
                f"edit at {self.patch.site}: `last` needs the number of axes of {graph_map.output}, and the graph "
                f"tells {rank}: infer its shapes first, with onnx.shape_inference"
            )
        data_type = graph_map.data_type
        return last_row_mask(self.changes, flat=rank == 2, data_type=data_type if data_type != FLOAT else None)
