"""The float dtypes of a graph into which an edit can be folded."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from alignez_bake.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Mapping

FILE_DTYPES: Final[Mapping[int, str]] = MappingProxyType({1: "F32", 10: "F16", 11: "F64", 16: "BF16"})
"""Number of TensorProto.DataType, and our spelling."""

FLOAT: Final = 1


def file_dtype_of(data_type: int, place: str) -> str:
    """Our spelling of a dtype.

    Args:
        data_type: number of TensorProto.DataType.
        place: whose it is, for the message.

    Raises:
        BadInputError: no plain floats.
    """
    if data_type not in FILE_DTYPES:
        raise BadInputError(
            f"{place} has the data type number {data_type}: edits fold into float64, float32, float16 or bfloat16 only"
        )
    return FILE_DTYPES[data_type]
