"""Small questions to a graph, as the fusions ask them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx_ir
    from numpy.typing import NDArray


def made_by(value: onnx_ir.Value | None, operator: str) -> onnx_ir.Node | None:
    """The node that a value comes from, if it is this operator of ONNX's own domain."""
    node = None if value is None else value.producer()
    return node if node is not None and node.domain == "" and node.op_type == operator else None


def constant(value: onnx_ir.Value | None) -> NDArray[Any] | None:
    """The values of a small constant, None for anything that is computed; an initialiser or a Constant node."""
    import onnx_ir  # noqa: PLC0415 - comes with an extra

    if value is None or (value.producer() is None and value.const_value is None):
        return None
    tensor = onnx_ir.convenience.get_const_tensor(value)
    if tensor is None or tensor.size > _SMALL:
        return None
    array: NDArray[Any] = tensor.numpy()
    return array


def scalar(value: onnx_ir.Value | None) -> float | None:
    """A constant of one element as a number."""
    array = constant(value)
    return float(array.reshape(())) if array is not None and array.size == 1 else None


def integers(value: onnx_ir.Value | None) -> list[int] | None:
    """A constant of integers, such as axes or starts."""
    array = constant(value)
    return None if array is None or array.dtype.kind != "i" else [int(entry) for entry in array.reshape(-1)]


def sizes(value: onnx_ir.Value | None) -> tuple[int | None, ...] | None:
    """The shape that the graph notes, None at axes that are dynamic; None where it notes none."""
    if value is None or value.shape is None:
        return None
    return tuple(size if isinstance(size, int) else None for size in value.shape)


def times_scalar(value: onnx_ir.Value) -> tuple[onnx_ir.Value, float]:
    """Looks through products with and divisions by a constant number: what is multiplied, and by how much."""
    factor = 1.0
    while True:
        if (node := made_by(value, "Mul")) is not None:
            first, second = node.inputs
            number, rest = scalar(second), first
            if number is None:
                number, rest = scalar(first), second
        elif (node := made_by(value, "Div")) is not None:
            rest, number = node.inputs[0], scalar(node.inputs[1])
            number = None if not number else 1 / number
        else:
            return value, factor
        if number is None or rest is None:
            return value, factor
        value, factor = rest, factor * number


def depends_on(value: onnx_ir.Value, sources: set[onnx_ir.Value]) -> bool:
    """Whether a value is computed from one of these."""
    waiting, seen = [value], set()
    while waiting:
        current = waiting.pop()
        if current in sources:
            return True
        node = current.producer()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting.extend(entry for entry in node.inputs if entry is not None)
    return False


_SMALL = 64
