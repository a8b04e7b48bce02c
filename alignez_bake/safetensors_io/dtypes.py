"""The dtypes of safetensors files, their numpy counterparts, and rounding once from one to another.

numpy has no bfloat16 and no float8; `ml_dtypes` brings them. Files are little-endian, and so must the host be.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class FileDtype:
    """One dtype of the file format.

    Attributes:
        name: the file's spelling, such as "BF16".
        bits: bits of one value in the file.
        numpy: dtype of the array that `read` gives; None where values are packed below one byte (F4, F6).
        is_plain_float: F64, F32, F16, BF16: values that mean themselves. The narrower floats are codes that need a
            scale from elsewhere.
    """

    name: str
    bits: int
    numpy: np.dtype[Any] | None
    is_plain_float: bool = False


# In the order in which the safetensors library ranks them: it writes the last ones first.
FILE_DTYPES: Final[tuple[FileDtype, ...]] = (
    FileDtype("BOOL", 8, np.dtype(np.bool_)),
    FileDtype("F4", 4, None),
    FileDtype("F6_E2M3", 6, None),
    FileDtype("F6_E3M2", 6, None),
    FileDtype("U8", 8, np.dtype("u1")),
    FileDtype("I8", 8, np.dtype("i1")),
    FileDtype("F8_E5M2", 8, np.dtype(ml_dtypes.float8_e5m2)),
    FileDtype("F8_E4M3", 8, np.dtype(ml_dtypes.float8_e4m3fn)),
    FileDtype("F8_E8M0", 8, np.dtype(ml_dtypes.float8_e8m0fnu)),
    FileDtype("F8_E4M3FNUZ", 8, np.dtype(ml_dtypes.float8_e4m3fnuz)),
    FileDtype("F8_E5M2FNUZ", 8, np.dtype(ml_dtypes.float8_e5m2fnuz)),
    FileDtype("I16", 16, np.dtype("<i2")),
    FileDtype("U16", 16, np.dtype("<u2")),
    FileDtype("F16", 16, np.dtype("<f2"), is_plain_float=True),
    FileDtype("BF16", 16, np.dtype(ml_dtypes.bfloat16), is_plain_float=True),
    FileDtype("I32", 32, np.dtype("<i4")),
    FileDtype("U32", 32, np.dtype("<u4")),
    FileDtype("F32", 32, np.dtype("<f4"), is_plain_float=True),
    FileDtype("C64", 64, np.dtype("<c8")),
    FileDtype("F64", 64, np.dtype("<f8"), is_plain_float=True),
    FileDtype("I64", 64, np.dtype("<i8")),
    FileDtype("U64", 64, np.dtype("<u8")),
)
BY_NAME: Final[dict[str, FileDtype]] = {dtype.name: dtype for dtype in FILE_DTYPES}
RANK: Final[dict[str, int]] = {dtype.name: rank for rank, dtype in enumerate(FILE_DTYPES)}
_BY_NUMPY: Final[dict[np.dtype[Any], FileDtype]] = {d.numpy: d for d in FILE_DTYPES if d.numpy is not None}


def file_dtype_of(dtype: np.dtype[Any]) -> str:
    """The file's name of a numpy dtype, such as "BF16" for `ml_dtypes.bfloat16`; byte order is ignored.

    Raises:
        ValueError: the format has no such dtype.
    """
    known = _BY_NUMPY.get(dtype.newbyteorder("<"))
    if known is None:
        raise ValueError(f"numpy dtype {dtype} has no counterpart in safetensors files: cast it first")
    return known.name


def numpy_dtype_of(name: str) -> np.dtype[Any]:
    """The numpy dtype of a file dtype, such as `ml_dtypes.bfloat16` for "BF16".

    Raises:
        ValueError: unknown name, or values packed below one byte.
    """
    known = BY_NAME.get(name)
    if known is None:
        raise ValueError(f"dtype {name!r} is unknown: safetensors files have {', '.join(BY_NAME)}")
    if known.numpy is None:
        raise ValueError(f"dtype {name!r} packs values below one byte and has no numpy array: read its bytes")
    return known.numpy


def is_plain_float(name: str) -> bool:
    """Whether a file dtype is F64, F32, F16 or BF16, whose values mean themselves without a scale."""
    return BY_NAME[name].is_plain_float


def cast_once(values: Array, dtype: np.dtype[Any]) -> Array:
    """Values rounded to `dtype`, once, to nearest, ties to even; overflow gives inf without a warning.

    ml_dtypes goes from fp64 to its own types by way of fp32 and so rounds twice: 1 + 2⁻⁸ + 2⁻⁴⁰ becomes 1 in
    bf16, though 1 + 2⁻⁷ is nearer. Here the step to fp32 rounds to odd: an inexact value is cut towards zero
    and its last bit set. That keeps which side of every tie of the narrower type it lies on (fp32 has more
    than two bits beyond each), so the second rounding is the only one.

    Args:
        values: any shape, any floating or integer dtype.
        dtype: the target.

    Returns:
        Array of the same shape and of dtype `dtype`; `values` itself if it has that dtype already.
    """
    if values.dtype == dtype:
        return values
    with np.errstate(over="ignore", invalid="ignore"):
        if values.dtype.newbyteorder("<") != np.dtype("<f8") or dtype.kind != "V":
            return values.astype(dtype)
        single = np.asarray(values.astype(np.float32))
        inexact = (single != values) & ~np.isnan(values)
        too_far = inexact & (np.abs(single) > np.abs(values))
        bits = single.view(np.uint32)
        bits -= too_far
        bits |= inexact
        return single.astype(dtype)
