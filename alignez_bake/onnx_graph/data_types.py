"""The numbers of TensorProto.DataType as numpy dtypes."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import ml_dtypes
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

NUMPY_DTYPES: Final[Mapping[int, np.dtype[Any]]] = MappingProxyType(
    {
        number: np.dtype(dtype)
        for number, dtype in {
            1: "<f4", 2: "u1", 3: "i1", 4: "<u2", 5: "<i2", 6: "<i4", 7: "<i8", 9: np.bool_, 10: "<f2", 11: "<f8",
            12: "<u4", 13: "<u8", 14: "<c8", 15: "<c16", 16: ml_dtypes.bfloat16, 17: ml_dtypes.float8_e4m3fn,
            18: ml_dtypes.float8_e4m3fnuz, 19: ml_dtypes.float8_e5m2, 20: ml_dtypes.float8_e5m2fnuz,
            24: ml_dtypes.float8_e8m0fnu,
        }.items()
    }
)  # fmt: skip
"""Those of whole bytes. Strings (8) and values packed below one byte (21 to 23, 25 to 28) have no such dtype."""
