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


class WorkMemory:
    """Float64 memory that every batch and site uses again: to take it anew each time costs as much as the sums."""

    def __init__(self) -> None:
        """Nothing taken yet."""
        self._memory = torch.empty(0, dtype=torch.float64)

    def rows(self, count: int, width: int, device: torch.device) -> torch.Tensor:
        """Float64 [count, width] with values of no meaning, valid until the next call."""
        if self._memory.numel() < count * width or self._memory.device != device:
            self._memory = torch.empty(count * width, dtype=torch.float64, device=device)
        return self._memory[: count * width].view(count, width)


class MomentsSum:
    """Sums over tokens, added in place: Zᵀ[Z, D] in two stripes, the second without the half that symmetry gives."""

    def __init__(self, work: WorkMemory) -> None:
        """Nothing summed yet; the widths are those of the first batch; `work` may be shared by many sums."""
        self._work = work
        self._products: torch.Tensor | None = None
        self._z_sum: torch.Tensor | None = None
        self._d_square: torch.Tensor | None = None
        self._count = 0

    def add(
        self,
        z: torch.Tensor,
        plus: torch.Tensor,
        minus: torch.Tensor | None,
        weights: torch.Tensor | None,
    ) -> None:
        """Add the rows of a batch.

        Args:
            z: [n, d_in].
            plus: [n, d_out].
            minus: the same; D = plus - minus, in float64. None: D = plus.
            weights: float64 [n], of the rows of D; None: all 1.
        """
        # Where the device has no float64, the sums live on the CPU.
        device = torch.device("cpu") if z.device.type == "mps" else z.device
        d_in, width = z.shape[1], z.shape[1] + plus.shape[1]
        both = self._work.rows(z.shape[0], width, device)
        keys, differences = both[:, :d_in], both[:, d_in:]
        keys.copy_(z)
        differences.copy_(plus)
        if minus is not None:
            differences.sub_(minus.to(device))
        if weights is not None:
            differences.mul_(weights.to(device)[:, None])
        if self._products is None or self._z_sum is None or self._d_square is None:
            self._products = torch.zeros(d_in, width, dtype=torch.float64, device=device)
            self._z_sum = torch.zeros(d_in, dtype=torch.float64, device=device)
            self._d_square = torch.zeros((), dtype=torch.float64, device=device)
        half = d_in // 2
        for first, last in ((0, half), (half, d_in)):
            self._products[first:last, first:].addmm_(keys[:, first:last].T, both[:, first:])
        self._z_sum += keys.sum(dim=0)
        self._d_square += (differences * differences).sum()
        self._count += z.shape[0]

    def total(self) -> Moments:
        """The sums so far."""
        assert self._products is not None
        assert self._z_sum is not None
        assert self._d_square is not None
        products = self._products.cpu().numpy()
        d_in = products.shape[0]
        half = d_in // 2
        ztz = products[:, :d_in].copy()
        ztz[half:, :half] = ztz[:half, half:].T
        return Moments(
            ztz,
            products[:, d_in:].copy(),
            self._z_sum.cpu().numpy(),
            float(self._d_square),
            self._count,
        )
