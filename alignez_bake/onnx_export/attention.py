"""The attention of one layer, however it was written, as the operator Attention with the cache inside.

What torch's exporter writes, up to opset 22, for attention with a cache and a mask (`scaled_dot_product_attention` of
transformers, or its "eager" form; parts in brackets may be absent):

    keys   = Concat(past keys, new keys)                 values = Concat(past values, new values)
    K      = [repeated] keys                             V      = [repeated] values
    scores = [scalar ·] Q [scalar ·] Kᵀ [· scalar]       [c · Tanh(scores / c)]      + mask
    output = [NaN to 0] Softmax(scores) V

and with opset 23 `Attention(Q, K, V, mask)`. Both become

    output, keys, values = Attention(Q, new keys, new values, mask, past keys, past values; scale, softcap)

which is the same function: the operator concatenates the cache, lets each head of keys serve the heads of queries that
`repeated` copied it to, and adds the mask after the cap. The mask stays what it was, so left padding, windows and any
length of the cache stay too. Where a row may see nothing at all (padding before the first token) the exporter's form
gives 0 and the operator a finite mean; such rows are padding, and no other row sees them.

com.microsoft's GroupQueryAttention is no choice: it refuses several new tokens behind a filled cache in a batch, and
heads whose width is no multiple of 8. MultiHeadAttention needs the copies of the keys that are saved here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from alignez_bake.onnx_export.walking import depends_on, integers, made_by, scalar, sizes, times_scalar

if TYPE_CHECKING:
    import onnx_ir

ATTENTION_OPSET: Final = 23
"""The first opset with the operator."""


@dataclass(frozen=True)
class Matched:
    """The attention of one layer as it was found.

    Attributes:
        output: what is replaced, [batch, heads, new, width].
        queries: [batch, heads, new, width].
        keys, values: the nodes that concatenate the cache.
        mask: what is added to the scores, or the boolean mask of an Attention node; None: there is none.
        scale: of the scores; None: the operator's own, 1 / sqrt(width).
        softcap: c, 0 without a cap.
    """

    output: onnx_ir.Value
    queries: onnx_ir.Value
    keys: onnx_ir.Node
    values: onnx_ir.Node
    mask: onnx_ir.Value | None
    scale: float | None
    softcap: float


class NoMatchError(Exception):
    """The attention of a layer is written in another way; the message says what was met."""


def holds_cache(keys: onnx_ir.Value, values: onnx_ir.Value) -> bool:
    """Whether a layer's `present` keys and values come out of the operator already, which then has its cache inside."""
    node = made_by(keys, "Attention")
    return node is not None and list(node.outputs[1:3]) == [keys, values] and all(node.inputs[4:6])


def match(keys: onnx_ir.Value, values: onnx_ir.Value) -> Matched:
    """Find the attention that reads a layer's cache.

    Args:
        keys: a layer's `present`, [batch, heads, past + new, width].
        values: likewise; their width may be another.

    Raises:
        NoMatchError: it is not written as the module says.
    """
    reader, repeated_values = _reader(values)
    parts = _operator(reader) if reader.op_type == "Attention" else _written_out(reader)
    full_keys, full_values, queries, mask, scale, softcap = parts
    if full_values is not repeated_values:
        raise NoMatchError("the product with the values has another order")
    if _unrepeated(full_keys) is not keys:
        raise NoMatchError("the scores are made of other keys than the cache's")
    if mask is not None and depends_on(mask, {keys, values}):
        raise NoMatchError("the mask is made from the cache")
    return Matched(reader.outputs[0], queries, _concat(keys), _concat(values), mask, scale, softcap)


def replace(graph: onnx_ir.Graph, found: Matched) -> None:
    """Put the operator in place of a match; nodes that nothing needs any more are left for a later pass."""
    import onnx_ir  # noqa: PLC0415 - comes with an extra

    (past_keys, new_keys), (past_values, new_values) = found.keys.inputs, found.values.inputs
    attributes: dict[str, float | int] = {"is_causal": 0}
    if found.scale is not None:
        attributes["scale"] = found.scale
    if found.softcap:
        attributes["softcap"] = found.softcap
    inputs = (found.queries, new_keys, new_values, found.mask, past_keys, past_values)
    replaced = [found.output, found.keys.outputs[0], found.values.outputs[0]]
    node = onnx_ir.node("Attention", inputs, attributes, num_outputs=len(replaced))
    old = found.output.producer()
    assert old is not None
    node.metadata_props.update(old.metadata_props)
    for before, after in zip(replaced, node.outputs, strict=True):
        after.shape, after.type, after.name = before.shape, before.type, before.name
        before.name = f"{before.name}_replaced"
    graph.insert_after(old, node)
    onnx_ir.convenience.replace_all_uses_with(replaced, list(node.outputs), replace_graph_outputs=True)


def _concat(value: onnx_ir.Value) -> onnx_ir.Node:
    node = made_by(value, "Concat")
    if node is None or len(node.inputs) != 2 or node.attributes.get_int("axis") not in (2, -2):
        raise NoMatchError("the cache is no concatenation of the past and the new tokens")
    if not node.inputs[0].is_graph_input():
        raise NoMatchError("the cache is changed before the new tokens join it")
    return node


def _reader(values: onnx_ir.Value) -> tuple[onnx_ir.Node, onnx_ir.Value]:
    """The product of probabilities and values, and what it has for values: the cache or its repeated heads."""
    while True:
        users = {node for node, _ in values.uses() if node.op_type != "Shape"}
        if len(users) != 1:
            raise NoMatchError(f"the cache is read by {len(users)} nodes")
        (node,) = users
        if node.op_type in ("MatMul", "Attention"):
            break
        if node.op_type not in ("Unsqueeze", "Expand", "Reshape"):
            raise NoMatchError(f"the cache goes through {node.op_type}")
        values = node.outputs[0]
    return node, values


_Parts = tuple["onnx_ir.Value", "onnx_ir.Value", "onnx_ir.Value", "onnx_ir.Value | None", "float | None", float]


def _operator(node: onnx_ir.Node) -> _Parts:
    if len([value for value in node.inputs if value is not None]) > 4 or node.attributes.get_int("is_causal", 0):
        raise NoMatchError("an Attention node has a cache or a mask of its own")
    if node.attributes.get_int("q_num_heads", 0):
        raise NoMatchError("an Attention node splits the heads itself")
    queries, keys, values, *rest = node.inputs
    scale = node.attributes["scale"].as_float() if "scale" in node.attributes else None
    return keys, values, queries, rest[0] if rest else None, scale, node.attributes.get_float("softcap", 0.0)


def _written_out(product: onnx_ir.Node) -> _Parts:
    probabilities, values = product.inputs
    softmax = made_by(_without_nan_guard(probabilities), "Softmax")
    if softmax is None or softmax.attributes.get_int("axis", -1) not in (-1, 3):
        raise NoMatchError("the values are not multiplied by a softmax")
    scores, mask = softmax.inputs[0], None
    if (added := made_by(scores, "Add")) is not None:
        scores, mask = added.inputs
    scores, softcap = _without_cap(scores)
    scores, outer = times_scalar(scores)
    if made_by(scores, "MatMul") is None and mask is not None:  # the sum is the other way round
        raise NoMatchError("what is added to the scores stands before them")
    inner = made_by(scores, "MatMul")
    if inner is None:
        raise NoMatchError("the scores are no product of queries and keys")
    queries, first = times_scalar(inner.inputs[0])
    transposed, second = times_scalar(inner.inputs[1])
    return _untransposed(transposed), values, queries, mask, outer * first * second, softcap


def _without_nan_guard(value: onnx_ir.Value) -> onnx_ir.Value:
    """`Where(IsNaN(x), 0, x)` is x but for rows that see nothing."""
    guard = made_by(value, "Where")
    if guard is None:
        return value
    test, zero, probabilities = guard.inputs
    is_nan = made_by(test, "IsNaN")
    if is_nan is None or is_nan.inputs[0] is not probabilities or scalar(zero) != 0:
        raise NoMatchError("the probabilities are chosen by something else than whether they are numbers")
    return probabilities


def _without_cap(scores: onnx_ir.Value) -> tuple[onnx_ir.Value, float]:
    """x and c of `c · Tanh(x / c)`."""
    outside, cap = times_scalar(scores)
    tanh = made_by(outside, "Tanh")
    if tanh is None:
        return scores, 0.0
    inside = made_by(tanh.inputs[0], "Div")
    if inside is None or scalar(inside.inputs[1]) != cap:
        raise NoMatchError("a tanh of the scores is no soft cap")
    return inside.inputs[0], cap


def _untransposed(value: onnx_ir.Value) -> onnx_ir.Value:
    """The keys whose last two axes were exchanged, directly or in three dimensions in between."""
    if (swap := made_by(value, "Transpose")) is not None and _order(swap) == [0, 1, 3, 2]:
        return swap.inputs[0]
    outer = made_by(value, "Reshape")
    swap = None if outer is None else made_by(outer.inputs[0], "Transpose")
    inner = None if swap is None or _order(swap) != [0, 2, 1] else made_by(swap.inputs[0], "Reshape")
    if inner is None:
        raise NoMatchError("the keys are not transposed")
    return inner.inputs[0]


def _order(node: onnx_ir.Node) -> list[int]:
    return list(node.attributes["perm"].as_ints())


def _unrepeated(value: onnx_ir.Value) -> onnx_ir.Value:
    """The heads before each was repeated for its group of queries: [b, h, t, d], [b, h, 1, t, d], [b, h, g, t, d].

    The last reshape, to [b, h · g, t, d], puts the copies of a head beside it, which is the operator's own order. That
    the second axis is the one that grew is read from the noted shapes.
    """
    merged = made_by(value, "Reshape")
    grown = None if merged is None else made_by(merged.inputs[0], "Expand")
    added = None if grown is None else made_by(grown.inputs[0], "Unsqueeze")
    if merged is None or grown is None or added is None:
        return value
    before, after = sizes(added.inputs[0]), sizes(value)
    if integers(added.inputs[1]) != [2] or before is None or after is None or len(before) != 4 or len(after) != 4:
        raise NoMatchError("heads are repeated in another way")
    if before[1] is None or after[1] is None or after[1] % before[1] or before[3] != after[3]:
        raise NoMatchError("heads are repeated in another way")
    return added.inputs[0]
