"""Which row of a forward call is the last, as a value that all edits at `last` multiply with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from alignez_bake.onnx_patch.changes import inserted_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from alignez_bake.onnx_patch.changes import GraphChanges


def last_row_mask(changes: GraphChanges, *, flat: bool, data_type: int | None) -> str:
    """Name of [T, 1], one at the last row and zero elsewhere, or of [batch · T, 1] for values that are flattened.

    T is the second axis of `input_ids`. OneHot counts its index from the end, so the mask is `-1` one-hot among T:

        Shape input_ids -> [B, T]    Gather 1 -> [T]    OneHot(-1, T) along axis 0 -> [T, 1]    (Cast)

    and, where rows of sequences lie one behind the other, Gather 0 -> [B], Concat [B, 1], Tile. So the nodes are
    three, and for flattened values three more; they are made once.

    Args:
        changes: where the nodes are noted.
        flat: whether batch and length are one axis.
        data_type: number of TensorProto.DataType of the mask; None: float32, which needs no Cast.
    """
    suffix = "" if data_type is None else f"_{data_type}"
    name = inserted_name("last_row", f"{'flat' if flat else 'rows'}{suffix}")
    made = {output for node in changes.first for output in node.output}
    if name in made:
        return name
    if flat:
        mask = last_row_mask(changes, flat=False, data_type=data_type)
        batch = _length(changes, axis=0)
        one = _constant(changes, "alignez.last_row.one", np.array([1], np.int64))
        repeats = _once(changes, "Concat", (batch, one), inserted_name("last_row", "repeats"), {"axis": 0})
        return _once(changes, "Tile", (mask, repeats), name)
    length = _length(changes, axis=1)
    last = _constant(changes, "alignez.last_row.minus_one", np.array([-1], np.int64))
    values = _constant(changes, "alignez.last_row.off_on", np.array([0, 1], np.float32))
    plain = inserted_name("last_row", "rows")
    _once(changes, "OneHot", (last, length, values), plain, {"axis": 0})
    return plain if data_type is None else _once(changes, "Cast", (plain,), name, {"to": data_type})


def _length(changes: GraphChanges, *, axis: int) -> str:
    """Name of the length of an axis of `input_ids`, [1]."""
    shape = _once(changes, "Shape", ("input_ids",), inserted_name("last_row", "shape"))
    which = _constant(changes, f"alignez.last_row.axis_{axis}", np.array([axis], np.int64))
    return _once(changes, "Gather", (shape, which), inserted_name("last_row", f"length_{axis}"))


def _constant(changes: GraphChanges, name: str, values: NDArray[Any]) -> str:
    """An initialiser, unless it is there."""
    return name if name in changes.values else changes.new_initialiser(name, values)


def _once(
    changes: GraphChanges,
    operator: str,
    inputs: tuple[str, ...],
    name: str,
    attributes: Mapping[str, int] | None = None,
) -> str:
    """A node before all others, unless it is there."""
    if all(node.name != name for node in changes.first):
        changes.first.append(changes.node(operator, inputs, name, attributes))
    return name
