"""Random weights in bf16, as fast as a disk takes them."""

from __future__ import annotations

import math
import zlib
from statistics import NormalDist
from typing import TYPE_CHECKING, Final

import ml_dtypes
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LEVELS: Final = 1 << 16
_BLOCK: Final = 1 << 22
_NORM_SPREAD: Final = 0.1


class Values:
    """Normal values by name: the same name and shape give the same ones.

    A value is a quantile of the normal distribution, at one of 2¹⁶ equally likely levels, rounded to bf16: 16 random
    bits and a look into a table make one, several times as fast as drawing normal numbers and rounding them. What lies
    beyond 4.3 standard deviations, one value in 65 000, is pulled in to there.
    """

    def __init__(self, spread: float) -> None:
        """Make the tables.

        Args:
            spread: standard deviation of weights of maps and of embeddings; biases have it as well.
        """
        normal = NormalDist()
        quantiles = np.array([normal.inv_cdf((level + 0.5) / _LEVELS) for level in range(_LEVELS)])
        self._weights = (spread * quantiles).astype(ml_dtypes.bfloat16)
        self._norms = (1 + _NORM_SPREAD * quantiles).astype(ml_dtypes.bfloat16)

    def of(self, name: str, shape: tuple[int, ...]) -> NDArray[ml_dtypes.bfloat16]:
        """The tensor of a name, bf16; one block of random bits is held beside it.

        Args:
            name: its key; norms, whose values lie about 1, are known by it.
            shape: its dimensions.
        """
        table = self._norms if name.endswith("norm.weight") else self._weights
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        values = np.empty(math.prod(shape), table.dtype)
        for start in range(0, values.size, _BLOCK):
            block = values[start : start + _BLOCK]
            words = rng.integers(0, 1 << 64, -(-block.size // 4), dtype=np.uint64)
            block[:] = table[words.view(np.uint16)[: block.size]]
        return values.reshape(shape)
