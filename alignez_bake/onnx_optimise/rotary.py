"""Rotary positions as the operator RotaryEmbedding.

    x cos + rotated(x) sin,  rotated([a, b]) = [-b, a],  cos = Cos([f, f]),  sin = Sin([f, f])

is seven nodes a tensor; the operator takes the first halves of cos and sin, [batch, new, width / 2], which every layer
shares. Rotary positions of a part of the width only are the same nodes on that part, between a split and a join that
stay.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from alignez_bake.onnx_export.walking import integers, made_by, sizes, times_scalar

if TYPE_CHECKING:
    import onnx_ir


@dataclass
class Halves:
    """The halves of cos and sin that were made so far, by the whole."""

    graph: onnx_ir.Graph
    made: dict[onnx_ir.Value, onnx_ir.Value] = field(default_factory=dict)

    def of(self, whole: onnx_ir.Value, width: int) -> onnx_ir.Value:
        """`whole` [batch, new, width] up to half the width."""
        import onnx_ir  # noqa: PLC0415 - comes with an extra

        if whole not in self.made:
            numbers = {"start": 0, "end": width // 2, "axis": 2}
            bounds = [self._integer(f"{whole.name}_half_{name}", number) for name, number in numbers.items()]
            node = onnx_ir.node("Slice", [whole, *bounds])
            node.outputs[0].name, node.outputs[0].type = f"{whole.name}_half", whole.type
            producer = whole.producer()
            assert producer is not None
            self.graph.insert_after(producer, node)
            self.made[whole] = node.outputs[0]
        return self.made[whole]

    def _integer(self, name: str, number: int) -> onnx_ir.Value:
        import onnx_ir  # noqa: PLC0415 - comes with an extra

        tensor = onnx_ir.tensor([number], dtype=onnx_ir.DataType.INT64, name=name)
        kind = onnx_ir.TensorType(tensor.dtype)
        value = onnx_ir.Value(name=name, const_value=tensor, shape=tensor.shape, type=kind)
        self.graph.register_initializer(value)
        return value


def fuse_rotary(graph: onnx_ir.Graph) -> int:
    """Replace every rotation of queries or keys, [batch, heads, new, width]; how many there were."""
    import onnx_ir  # noqa: PLC0415 - comes with an extra

    halves, fused = Halves(graph), 0
    for total in [node for node in graph if node.op_type == "Add" and node.domain == ""]:
        found = _match(total)
        if found is None:
            continue
        x, cos, sin, width = found
        node = onnx_ir.node("RotaryEmbedding", [x, halves.of(cos, width), halves.of(sin, width)])
        before, after = total.outputs[0], node.outputs[0]
        after.shape, after.type, after.name = before.shape, before.type, before.name
        before.name = f"{before.name}_replaced"
        node.metadata_props.update(total.metadata_props)
        graph.insert_after(total, node)
        onnx_ir.convenience.replace_all_uses_with(before, after, replace_graph_outputs=True)
        fused += 1
    return fused


def _match(total: onnx_ir.Node) -> tuple[onnx_ir.Value, onnx_ir.Value, onnx_ir.Value, int] | None:
    first, second = (made_by(value, "Mul") for value in total.inputs)
    if first is None or second is None:
        return None
    x, cos = _factor(first, "Cos")
    rotated, sin = _factor(second, "Sin")
    if x is None or cos is None or rotated is None or sin is None:
        return None
    shape = sizes(x)
    if shape is None or len(shape) != 4 or shape[3] is None or shape[3] % 2:
        return None
    return (x, cos, sin, shape[3]) if _is_rotated(rotated, x, shape[3]) else None


def _factor(product: onnx_ir.Node, operator: str) -> tuple[onnx_ir.Value | None, onnx_ir.Value | None]:
    """Of a product with `Unsqueeze(cos, 1)`: the other factor, and cos."""
    for index, value in enumerate(product.inputs):
        lifted = made_by(value, "Unsqueeze")
        if lifted is not None and integers(lifted.inputs[1]) == [1] and _has_equal_halves(lifted.inputs[0], operator):
            return product.inputs[1 - index], lifted.inputs[0]
    return None, None


def _has_equal_halves(value: onnx_ir.Value | None, operator: str) -> bool:
    """Whether it is the cosine (or sine) of [f, f], perhaps times a number, and rounded to 16 bits."""
    if value is None:
        return False
    rounded = made_by(value, "Cast")
    source = value if rounded is None else rounded.inputs[0]
    assert source is not None
    value, _ = times_scalar(source)
    wave = made_by(value, operator)
    joined = None if wave is None else made_by(wave.inputs[0], "Concat")
    return joined is not None and len(joined.inputs) == 2 and joined.inputs[0] is joined.inputs[1]


def _is_rotated(value: onnx_ir.Value, x: onnx_ir.Value, width: int) -> bool:
    joined = made_by(value, "Concat")
    if joined is None or len(joined.inputs) != 2 or joined.attributes.get_int("axis") not in (-1, 3):
        return False
    negated = made_by(joined.inputs[0], "Neg")
    if negated is None:
        return False
    half = width // 2
    return _is_part(negated.inputs[0], x, half, width) and _is_part(joined.inputs[1], x, 0, half)


def _is_part(value: onnx_ir.Value | None, x: onnx_ir.Value, start: int, end: int) -> bool:
    """Whether a value is `x[..., start:end]`."""
    part = made_by(value, "Slice")
    if part is None or part.inputs[0] is not x:
        return False
    starts, ends, axes, *steps = (integers(entry) for entry in part.inputs[1:])
    if starts != [start] or axes not in ([3], [-1]) or steps not in ([], [[1]]):
        return False
    # Torch writes the end of an axis as the largest integer.
    shape = sizes(x)
    is_end = shape is not None and shape[-1] == end
    return ends == [end] or (is_end and ends is not None and len(ends) == 1 and ends[0] >= end)
