"""The patched model: the base's, with the changes in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alignez_bake.onnx_patch.changes import GraphChanges
    from alignez_bake.onnx_patch.edits_data import StoredValues

_EXTERNAL = 1  # TensorProto.DataLocation


def patched_model(changes: GraphChanges, side_file: str) -> Any:  # noqa: ANN401 - a ModelProto
    """A model with the changes; the base's is left as it is.

    What nothing reads any more goes: an initialiser whose only reader got another one, and a Transpose or Identity
    that stood between them.

    Args:
        changes: collected.
        side_file: name of the file that holds the new values which are not in the graph.
    """
    import onnx  # noqa: PLC0415 - comes with an extra

    model = onnx.ModelProto()
    model.CopyFrom(changes.base.model)
    graph = model.graph
    for (place, which), name in changes.inputs.items():
        graph.node[place].input[which] = name
    for place, name in changes.outputs.items():
        graph.node[place].output[0] = name
    nodes = list(changes.first)
    for place, node in enumerate(graph.node):
        nodes += [node, *changes.after.get(place, ())]
    unread = _unread(changes)
    kept = onnx.GraphProto()  # a copy, which outlives the list that it is taken from
    kept.node.extend(node for node in nodes if not unread.intersection(node.output))
    initialisers = _initialisers(graph.initializer, changes, unread, side_file)
    del graph.node[:], graph.initializer[:]
    graph.node.extend(kept.node)
    graph.initializer.extend(initialisers)
    return model


def _unread(changes: GraphChanges) -> set[str]:
    """Values that nothing reads any more, since their readers got others: initialisers, and steps to them."""
    left, before = dict(changes.base.uses), changes.base.model.graph.node
    pending = [before[place].input[which] for place, which in changes.inputs]
    unread: set[str] = set()
    while pending:
        name = pending.pop()
        left[name] -= 1
        place = changes.base.producers.get(name)
        if left[name] or (place is not None and before[place].op_type not in ("Transpose", "Identity")):
            continue
        unread.add(name)
        pending.extend(() if place is None else before[place].input)
    return unread


def _initialisers(before: Any, changes: GraphChanges, unread: set[str], side_file: str) -> Any:  # noqa: ANN401
    """The base's initialisers in their order, with new values where there are any, and the new ones behind them."""
    import onnx  # noqa: PLC0415 - comes with an extra

    new, graph = dict(changes.values), onnx.GraphProto()
    for tensor in before:
        if tensor.name in new:
            graph.initializer.append(_tensor(tensor.name, new.pop(tensor.name), side_file))
        elif tensor.name not in unread:
            graph.initializer.append(tensor)
    graph.initializer.extend(_tensor(name, values, side_file) for name, values in new.items())
    return graph.initializer


def _tensor(name: str, stored: StoredValues, side_file: str) -> Any:  # noqa: ANN401
    import onnx  # noqa: PLC0415 - comes with an extra

    tensor = onnx.TensorProto(
        name=name, data_type=onnx.helper.np_dtype_to_tensor_dtype(stored.dtype), dims=stored.shape
    )
    if stored.values is not None:
        tensor.raw_data = stored.values.tobytes()
        return tensor
    tensor.data_location = _EXTERNAL
    for key, value in (("location", side_file), ("offset", str(stored.offset)), ("length", str(stored.length))):
        tensor.external_data.add(key=key, value=value)
    return tensor
