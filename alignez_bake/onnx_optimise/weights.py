"""The constant matrices of a graph: who multiplies with them, and what they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alignez_bake.architectures.architecture import INSERTED_EDITS
from alignez_bake.onnx_export.walking import made_by

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir
    from numpy.typing import NDArray

_PARAMETER = "pkg.onnxscript.optimizer.folded_from"


@dataclass(frozen=True)
class Weight:
    """A matrix W [K, N] that a node multiplies its input [.., K] with.

    Attributes:
        node: a MatMul, or a Gemm that is `x W + b`.
        name: of the value that holds W, or its transpose.
        stored: the initialiser.
        transposed: whether it is stored as [N, K].
    """

    node: onnx_ir.Node
    name: str
    stored: onnx_ir.TensorProtocol
    transposed: bool

    @property
    def shape(self) -> tuple[int, int]:
        """K and N."""
        first, second = (int(size) for size in self.stored.shape)
        return (second, first) if self.transposed else (first, second)

    @property
    def of_an_edit(self) -> bool:
        """Whether it belongs to an inserted edit, by the parameter's name, which the exporter leaves somewhere."""
        value = self.node.inputs[1]
        assert value is not None
        return INSERTED_EDITS in self.name or INSERTED_EDITS in value.metadata_props.get(_PARAMETER, "")

    def values(self) -> NDArray[Any]:
        """W, [K, N], read now."""
        array: NDArray[Any] = self.stored.numpy()
        return array.T if self.transposed else array


def weights_of(graph: onnx_ir.Graph) -> Iterator[Weight]:
    """Every product with a constant matrix, in order of the graph; one that two nodes share comes twice."""
    for node in graph:
        if (weight := weight_of(node)) is not None:
            yield weight


def weight_of(node: onnx_ir.Node) -> Weight | None:
    """The constant matrix of a node; None where there is none."""
    if node.domain != "" or node.op_type not in ("MatMul", "Gemm"):
        return None
    transposed = False
    if node.op_type == "Gemm":
        plain = node.attributes.get_float("alpha", 1.0) == 1 and node.attributes.get_float("beta", 1.0) == 1
        if not plain or node.attributes.get_int("transA", 0):
            return None
        transposed = bool(node.attributes.get_int("transB", 0))
    value = node.inputs[1]
    assert value is not None
    stored = value.const_value
    if stored is None:  # an embedding that is the head too is transposed in the graph
        swap = made_by(value, "Transpose")
        stored = None if swap is None or swap.inputs[0] is None else swap.inputs[0].const_value
        transposed = not transposed
    if stored is None or len(stored.shape) != 2:
        return None
    assert value.name is not None
    return Weight(node, value.name, stored, transposed)
