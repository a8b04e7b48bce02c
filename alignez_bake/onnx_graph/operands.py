"""What a graph does with its initialisers, as far as that tells how a weight must lie."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignez_bake.onnx_graph.messages import graphs, nodes, text
from alignez_bake.runtime.protobuf import fields

if TYPE_CHECKING:
    from alignez_bake.onnx_graph.initialisers import GraphTensors


def right_operands(graph: GraphTensors) -> frozenset[str]:
    """Initialisers W of products x W, which therefore lie as [in, out], whatever the model's own layout.

    MatMul's second input is one, and Gemm's unless it says that it transposes it.

    Raises:
        BadInputError: a graph that is damaged.
    """
    place, found = str(graph.path), set()
    for message in graphs(graph.message, place):
        for node in nodes(message, place):
            operator, inputs, transposes = _node(node, place)
            if len(inputs) > 1 and inputs[1] in graph and not transposes and operator in ("MatMul", "Gemm"):
                found.add(inputs[1])
    return frozenset(found)


def _node(message: memoryview, place: str) -> tuple[str, list[str], bool]:
    """Operator, inputs, and whether an attribute transposes the second one."""
    operator, inputs, transposes = "", [], False
    for number, value in fields(message, place):
        if number == 1:
            inputs.append(text(value, place))
        elif number == 4:
            operator = text(value, place)
        elif number == 5 and isinstance(value, memoryview):
            attribute = dict(fields(value, place))
            transposes |= text(attribute.get(1, 0), place) == "transB" and attribute.get(3, 0) != 0
    return operator, inputs, transposes
