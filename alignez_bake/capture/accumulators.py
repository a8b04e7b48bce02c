"""Running statistics while batches come in; the sums live in float64 where the model lives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from alignez_bake.capture.statistics import Moments, Rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


def in_float64(values: torch.Tensor) -> torch.Tensor:
    """The values in float64, on the CPU where the device has no float64."""
    return (values.cpu() if values.device.type == "mps" else values).to(torch.float64)


class RowsList:
    """Rows of every pair, which may come in any order."""

    def __init__(self, pairs: int) -> None:
        """Room for `pairs` pairs."""
        self._parts: list[NDArray[np.float64]] = [np.zeros((0, 0))] * pairs

    def add(self, batch: Sequence[int], values: torch.Tensor, counts: Sequence[int]) -> None:
        """Take the rows of a batch.

        Args:
            batch: number of each pair.
            values: [Σ counts, d], pair after pair.
            counts: rows of each pair.
        """
        array = in_float64(values).cpu().numpy()
        for index, part in zip(batch, np.split(array, np.cumsum(counts)[:-1]), strict=True):
            self._parts[index] = part

    def total(self) -> Rows:
        """All rows, in the order of the pairs."""
        return Rows(np.concatenate(self._parts))


class MomentsSum:
    """Sums over tokens: one matrix product a batch for ZᵀZ and one for ZᵀD, added in place."""

    def __init__(self) -> None:
        """Nothing summed yet; the widths are those of the first batch."""
        self._ztz: torch.Tensor | None = None
        self._ztd: torch.Tensor | None = None
        self._z_sum: torch.Tensor | None = None
        self._d_square: torch.Tensor | None = None
        self._count = 0

    def add(self, z: torch.Tensor, d: torch.Tensor) -> None:
        """Add the rows of a batch: z [n, d_in], d [n, d_out], float64."""
        if self._ztz is None or self._ztd is None or self._z_sum is None or self._d_square is None:
            self._ztz, self._ztd, self._z_sum, self._d_square = z.T @ z, z.T @ d, z.sum(dim=0), (d * d).sum()
        else:
            self._ztz.addmm_(z.T, z)
            self._ztd.addmm_(z.T, d)
            self._z_sum += z.sum(dim=0)
            self._d_square += (d * d).sum()
        self._count += z.shape[0]

    def total(self) -> Moments:
        """The sums so far."""
        assert self._ztz is not None
        assert self._ztd is not None
        assert self._z_sum is not None
        assert self._d_square is not None
        return Moments(
            self._ztz.cpu().numpy(),
            self._ztd.cpu().numpy(),
            self._z_sum.cpu().numpy(),
            float(self._d_square),
            self._count,
        )
