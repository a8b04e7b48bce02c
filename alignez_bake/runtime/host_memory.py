"""Logits on the host as numpy arrays, read where ONNX Runtime has them.

`OrtValue.numpy()` copies the whole tensor, which for a prompt is every position of every row where one is wanted,
and has no bfloat16.
"""

from __future__ import annotations

import ctypes
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from alignez_bake.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

_BFLOAT16: Final = 16
_DTYPES: Final[Mapping[int, type[np.generic]]] = MappingProxyType(
    {1: np.float32, 10: np.float16, 11: np.float64, _BFLOAT16: np.uint16}
)
"""By number of TensorProto.DataType; numpy has no bfloat16, so that its bits are read."""


def read_logits(value: Any, place: str, *, last: bool) -> NDArray[Any]:  # noqa: ANN401 - an OrtValue, which has no stubs
    """A copy of logits, of which nothing is copied that is not asked for.

    Args:
        value: ONNX Runtime's, [batch, length, vocabulary], of a type in `signature.LOGITS_TYPES`.
        place: the model, for messages.
        last: of the last position alone.

    Returns:
        [batch, length, vocabulary], or [batch, vocabulary] of the last position; bfloat16 as float32, whose upper
        half it is, everything else in its own dtype.

    Raises:
        BadInputError: the values lie on another device.
    """
    if value.device_name() != "cpu":
        raise BadInputError(f"{place}: logits lie on {value.device_name()} and were bound to the host")
    kind = value.element_type()
    memory = (ctypes.c_char * value.tensor_size_in_bytes()).from_address(value.data_ptr())
    whole = np.frombuffer(memory, dtype=_DTYPES[kind]).reshape(value.shape())
    wanted = whole[:, -1] if last else whole
    if kind == _BFLOAT16:
        return (wanted.astype(np.uint32) << 16).view(np.float32)
    return wanted.copy()
