"""Which row of a forward call is the last, as a value that all edits at `last` multiply with."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from alignez_bake.onnx_patch.changes import inserted_name
from alignez_bake.onnx_patch.dtypes import FLOAT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from alignez_bake.onnx_patch.changes import GraphChanges

# Number of TensorProto.DataType -> what OneHot gives. ONNX has none in bfloat16, ONNX Runtime none in float64.
_DIRECT: Final[Mapping[int, np.dtype[Any]]] = MappingProxyType({FLOAT: np.dtype(np.float32), 10: np.dtype(np.float16)})
_SLICED_SHAPE_OPSET: Final = 15
"""From here on Shape gives some of the axes, if told."""


def last_row_mask(changes: GraphChanges, *, flat: bool, data_type: int | None) -> str:
    """Name of [T, 1], one at the last row and zero elsewhere, or of [batch · T, 1] for values that are flattened.

    T is the second axis of `input_ids`. OneHot counts its index from the end, so the mask is `-1` one-hot among T:

        Shape input_ids, axis 1 -> [1]    OneHot(-1, T, (0, 1)) along axis 0 -> [T, 1]

    Where rows of sequences lie one behind the other, [B, T] of zeros loses its first column and gets ones as its last:

        Shape input_ids -> [2]    ConstantOfShape 0 -> [B, T]    Pad (-1, 1) with 1 -> [B, T]    Reshape -> [B · T, 1]

    So the nodes are two, and four for flattened values; they are made once. One more each are a Cast to bfloat16 and
    float64, for which operators are missing, and below opset 15 a Gather of T.

    Args:
        changes: where the nodes are noted.
        flat: whether batch and length are one axis.
        data_type: number of TensorProto.DataType of the mask; None: float32.
    """
    wanted = FLOAT if data_type is None else data_type
    made = wanted if wanted in _DIRECT else FLOAT
    mask = _flat(changes, made) if flat else _column(changes, made)
    return mask if made == wanted else _once(changes, "Cast", (mask,), f"{mask}_{wanted}", {"to": wanted})


def _column(changes: GraphChanges, data_type: int) -> str:
    last = _constant(changes, "last", np.array([-1], np.int64))
    off_on = _constant(changes, f"off_on_{data_type}", np.array([0, 1], _DIRECT[data_type]))
    name = inserted_name("last_row", f"rows_{data_type}")
    return _once(changes, "OneHot", (last, _length(changes), off_on), name, {"axis": 0})


def _flat(changes: GraphChanges, data_type: int) -> str:
    from onnx import numpy_helper  # noqa: PLC0415 - comes with an extra

    zero = numpy_helper.from_array(np.zeros(1, _DIRECT[data_type]))
    one = _constant(changes, f"one_{data_type}", np.array(1, _DIRECT[data_type]))
    columns = _constant(changes, "columns", np.array([0, -1, 0, 1], np.int64))
    flattened = _constant(changes, "flattened", np.array([-1, 1], np.int64))
    name = inserted_name("last_row", f"flat_{data_type}")
    zeros = _once(changes, "ConstantOfShape", (_shape(changes),), f"{name}_zeros", {"value": zero})
    padded = _once(changes, "Pad", (zeros, columns, one), f"{name}_padded")
    return _once(changes, "Reshape", (padded, flattened), name)


def _length(changes: GraphChanges) -> str:
    """Name of T, [1]."""
    name = inserted_name("last_row", "length")
    if changes.base.tensors.opset >= _SLICED_SHAPE_OPSET:
        return _once(changes, "Shape", ("input_ids",), name, {"start": 1, "end": 2})
    return _once(changes, "Gather", (_shape(changes), _constant(changes, "axis", np.array([1], np.int64))), name)


def _shape(changes: GraphChanges) -> str:
    """Name of [B, T], as a list."""
    return _once(changes, "Shape", ("input_ids",), inserted_name("last_row", "shape"))


def _constant(changes: GraphChanges, name: str, values: NDArray[Any]) -> str:
    """An initialiser, unless it is there."""
    name = f"alignez.last_row.{name}"
    return name if name in changes.values else changes.new_initialiser(name, values)


def _once(
    changes: GraphChanges,
    operator: str,
    inputs: tuple[str, ...],
    name: str,
    attributes: Mapping[str, Any] | None = None,
) -> str:
    """A node before all others, unless it is there."""
    if all(node.name != name for node in changes.first):
        changes.first.append(changes.node(operator, inputs, name, attributes))
    return name
