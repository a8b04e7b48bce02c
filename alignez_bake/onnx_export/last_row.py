"""Which row of a call is the last, as few nodes of a graph that torch traced.

An inserted checkpoint computes it as `(torch.arange(T) == T - 1).unsqueeze(-1)`, which becomes a value of the
arithmetic's dtype where it is multiplied with:

    Sub(T, 1)    Equal(Range(0, T, 1), ·) [T]    Unsqueeze(·, -1) [T, 1]    Cast [T, 1]

That is `-1` one-hot among T, one node of ONNX, which counts an index from the end and whose values have the dtype:

    OneHot(-1, T, (0, 1)) along axis 0 -> [T, 1]

A model whose layers make batch and positions one axis repeats the row B times by a Tile between Equal and Unsqueeze:

    ConstantOfShape(B, -1) [B]    OneHot(·, T, (0, 1)) along axis 1 -> [B, T]    Reshape(·, (-1, 1)) -> [B · T, 1]

T is read as its Shape gives it, a list of one, which models need themselves. So edits at `last` cost one node that all
sites share, or these three, and one product each.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import onnx_ir as ir

from alignez_bake.architectures.architecture import INSERTED_EDITS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import nn

_PREFIX: Final = "alignez.last_row"


class _Mask(NamedTuple):
    """A mask as torch traces it.

    Attributes:
        cast: the node that computes it, in the dtype of the arithmetic.
        unsqueeze: the node before it, which makes a column of a row.
        length: T, int64 [] or [1].
        repeats: B, how often the row is repeated, int64 [1], or None.
    """

    cast: ir.Node
    unsqueeze: ir.Node
    length: ir.Value
    repeats: ir.Value | None


def one_hot_last_row(graph: ir.Graph, model: nn.Module) -> None:
    """Compute the masks of edits at `last` by OneHot, in place; a graph of a model without any is left as it is.

    The function is the same for all lengths from 1 on. Only what computes such a mask for products and nothing else
    is replaced. A mask that torch traces otherwise stays: then the graph is right, and larger than it need be.

    Args:
        graph: traced and optimised, its initialisers' values known.
        model: the model it was traced of.

    Warns:
        RuntimeWarning: there are fewer products with such masks than edits at `last`.
    """
    edits = _edits_at_last(model)
    if not edits:
        return
    products = sum(_replace(graph, mask) for mask in list(_masks(graph)))
    if products < edits:
        warnings.warn(
            f"{edits - products} of {edits} edits at the last position have more nodes than they need: the graph is "
            "right, but this version of torch traces the last position in a way that is not known here",
            RuntimeWarning,
            stacklevel=2,
        )


def _edits_at_last(model: nn.Module) -> int:
    edits = (module for path, module in model.named_modules() if path.split(".")[-2:-1] == [INSERTED_EDITS])
    return sum(edit.positions == "last" for edit in edits)


def _masks(graph: ir.Graph) -> Iterator[_Mask]:
    """All masks that products read and nothing else."""
    for node in graph:
        if node.op_type != "Cast" or any(use.node.op_type != "Mul" for use in node.outputs[0].uses()):
            continue
        unsqueeze = _producer(node.inputs[0], "Unsqueeze")
        if unsqueeze is None or _constant(unsqueeze.inputs[1]) != [-1]:
            continue
        row, repeats = unsqueeze.inputs[0], None
        if (tile := _producer(row, "Tile")) is not None:
            row = tile.inputs[0]
            repeats = None if _constant(tile.inputs[1]) == [1] else tile.inputs[1]
        # `repeat` first gives a tensor as many axes as there are repeats, which changes nothing where it has them.
        if (expand := _producer(row, "Expand")) is not None and _constant(expand.inputs[1]) == [1]:
            row = expand.inputs[0]
        length = _length_of(row)
        if length is not None:
            yield _Mask(node, unsqueeze, length, repeats)


def _length_of(row: ir.Value | None) -> ir.Value | None:
    """T where the value is `Range(0, T, 1) == T - 1`."""
    equal = _producer(row, "Equal")
    if equal is None:
        return None
    numbers, last = _producer(equal.inputs[0], "Range"), _producer(equal.inputs[1], "Sub")
    if numbers is None or last is None:
        return None
    start, length, step = numbers.inputs
    same = last.inputs[0] is length and _constant(last.inputs[1]) == 1
    if not same or (_constant(start), _constant(step)) != (0, 1):
        return None
    # A value of no axes was a list of one before it was squeezed, and so needs no Squeeze of its own.
    squeeze = _producer(length, "Squeeze")
    return length if squeeze is None else squeeze.inputs[0]


def _replace(graph: ir.Graph, mask: _Mask) -> int:
    """Replace one mask; how many products read it."""
    cast, (output,) = mask.cast, mask.cast.outputs
    products = len(output.uses())
    off_on = _initialiser(graph, "off_on", np.array([0, 1], np.float32))
    if mask.repeats is None:
        last = _initialiser(graph, "last", np.array([-1], np.int64))
        found = _before(graph, cast, "OneHot", (last, mask.length, off_on), {"axis": 0})
    else:
        column = _initialiser(graph, "column", np.array([-1, 1], np.int64))
        lasts = _before(graph, cast, "ConstantOfShape", (mask.repeats,), {"value": ir.tensor(np.array([-1], np.int64))})
        rows = _before(graph, cast, "OneHot", (lasts, mask.length, off_on), {"axis": 1})
        found = _before(graph, cast, "Reshape", (rows, column))
    if cast.attributes["to"].as_int() != ir.DataType.FLOAT:
        cast.replace_input_with(0, found)  # ONNX Runtime has no OneHot in other floats but float16
        _remove_unread(graph, mask.unsqueeze)
        return products
    found.shape, found.type = output.shape, output.type
    ir.convenience.replace_all_uses_with(output, found)
    _remove_unread(graph, cast)
    return products


def _before(
    graph: ir.Graph,
    node: ir.Node,
    operator: str,
    inputs: Sequence[ir.Value],
    attributes: Mapping[str, int | ir.TensorProtocol] | None = None,
) -> ir.Value:
    """Output of a new node before another, which says of itself where in the model that one is."""
    name = f"{_PREFIX}.{operator}.{node.name}"
    new = ir.node(operator, inputs, attributes=attributes, name=name, metadata_props=dict(node.metadata_props))
    new.outputs[0].name = name
    graph.insert_before(node, new)
    return new.outputs[0]


def _initialiser(graph: ir.Graph, name: str, values: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> ir.Value:
    """An initialiser, unless it is there."""
    name = f"{_PREFIX}.{name}"
    if name not in graph.initializers:
        tensor = ir.tensor(values, name=name)
        graph.register_initializer(
            ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        )
    return graph.initializers[name]


def _remove_unread(graph: ir.Graph, node: ir.Node) -> None:
    """Take out a node that nothing reads, and what was computed or kept for it alone."""
    if any(output.uses() or output.is_graph_output() for output in node.outputs):
        return
    inputs = [value for value in node.inputs if value is not None]
    graph.remove(node, safe=True)
    for value in inputs:
        if (before := value.producer()) is not None:
            _remove_unread(graph, before)
        elif value.is_initializer() and not value.uses() and not value.is_graph_output():
            graph.initializers.pop(value.name, None)


def _producer(value: ir.Value | None, operator: str) -> ir.Node | None:
    """The node that computes a value, if it is of this operator."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == operator else None


def _constant(value: ir.Value | None) -> object:
    """A number or list of a value that is known; None of another."""
    return None if value is None or value.const_value is None else value.const_value.numpy().tolist()
