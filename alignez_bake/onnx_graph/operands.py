"""What a graph does with its initialisers, as far as that tells whether and how a weight is used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignez_bake.onnx_graph.messages import graphs, nodes, outputs, text
from alignez_bake.runtime.graph_file import CHILDREN
from alignez_bake.runtime.protobuf import fields

if TYPE_CHECKING:
    from collections.abc import Iterator

    from alignez_bake.onnx_graph.initialisers import GraphTensors

_SUBGRAPHS = frozenset(number for number, kind in CHILDREN["attribute"].items() if kind == "graph")


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


def used_initialisers(graph: GraphTensors) -> frozenset[str]:
    """Initialisers that some node takes, in a subgraph too, or that the graph gives out as they are.

    Raises:
        BadInputError: a graph that is damaged.
    """
    place = str(graph.path)
    return frozenset(
        name for message in graphs(graph.message, place) for name in _taken(message, place) if name in graph
    )


def _taken(graph: memoryview, place: str) -> Iterator[str]:
    """Names that the nodes of a graph and of its subgraphs take, and its outputs'."""
    yield from outputs(graph, place)
    for node in nodes(graph, place):
        for number, value in fields(node, place):
            if number == 1:
                yield text(value, place)
            elif number == 5 and isinstance(value, memoryview):
                for part, subgraph in fields(value, place):
                    if part in _SUBGRAPHS and isinstance(subgraph, memoryview):
                        yield from _taken(subgraph, place)


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
