"""Running statistics while batches come in, in float64: where the model lives, or mapped from a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from alignez_bake.capture.memory import StatisticsMemory
from alignez_bake.capture.statistics import Moments, Rows, TokenRows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from alignez_bake.capture.token_choice import TokenChoice


def in_float64(values: torch.Tensor) -> torch.Tensor:
    """The values in float64, on the CPU where the device has no float64."""
    return (values.cpu() if values.device.type == "mps" else values).to(torch.float64)


class RowsList:
    """Rows of every pair, which may come in any order."""

    def __init__(self, pairs: int) -> None:
        """Room for `pairs` pairs."""
        self._parts: list[NDArray[np.float64]] = [np.zeros((0, 0))] * pairs
        self._predicting: list[NDArray[np.bool_]] = [np.zeros(0, np.bool_)] * pairs

    def add(
        self, batch: Sequence[int], values: torch.Tensor, counts: Sequence[int], predicting: NDArray[np.bool_]
    ) -> None:
        """Take the rows of a batch.

        Args:
            batch: number of each pair.
            values: [Σ counts, d], pair after pair.
            counts: rows of each pair.
            predicting: [Σ counts], as `Rows.predicts_answer`.
        """
        array = in_float64(values).cpu().numpy()
        ends = np.cumsum(counts)[:-1]
        for index, part, marks in zip(batch, np.split(array, ends), np.split(predicting, ends), strict=True):
            self._parts[index] = part
            self._predicting[index] = marks

    def total(self) -> Rows:
        """All rows, in the order of the pairs."""
        # A sample may hold no row of a pair, whose part then has no width of its own.
        return Rows(np.concatenate([part for part in self._parts if len(part)]), np.concatenate(self._predicting))


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

    def key_and_difference(
        self, z: torch.Tensor, plus: torch.Tensor, minus: torch.Tensor | None, weights: torch.Tensor | None
    ) -> torch.Tensor:
        """Z and D side by side, float64 [n, d_in + d_out], valid until the next call.

        Args:
            z: [n, d_in].
            plus: [n, d_out].
            minus: the same; D = plus - minus, in float64. None: D = plus.
            weights: float64 [n], of the rows of D; None: all 1.
        """
        # Where the device has no float64, the rows and their sums live on the CPU.
        device = torch.device("cpu") if z.device.type == "mps" else z.device
        d_in = z.shape[1]
        both = self.rows(z.shape[0], d_in + plus.shape[1], device)
        both[:, :d_in].copy_(z)
        differences = both[:, d_in:]
        differences.copy_(plus)
        if minus is not None:
            differences.sub_(minus.to(device))
        if weights is not None:
            differences.mul_(weights.to(device)[:, None])
        return both


class MomentsSum:
    """Sums over tokens, added in place: Zᵀ[Z, D] in stripes of rows, each without what symmetry gives of it."""

    def __init__(self, work: WorkMemory, memory: StatisticsMemory | None = None) -> None:
        """Nothing summed yet; the widths are those of the first batch.

        Args:
            work: may be shared by many sums.
            memory: what says where the sums lie, and may map them; None: where the model lives.
        """
        self._work = work
        self._memory = StatisticsMemory((), memory_bytes=1) if memory is None else memory
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
        """Add the rows of a batch; arguments as `WorkMemory.key_and_difference`."""
        both = self._work.key_and_difference(z, plus, minus, weights)
        d_in, width, device = z.shape[1], both.shape[1], both.device
        if self._products is None or self._z_sum is None or self._d_square is None:
            if self._memory.mapped:
                self._products = torch.from_numpy(self._memory.zeros((d_in, width), np.float64))
            else:
                self._products = torch.zeros(d_in, width, dtype=torch.float64, device=device)
            self._z_sum = torch.zeros(d_in, dtype=torch.float64, device=device)
            self._d_square = torch.zeros((), dtype=torch.float64, device=device)
        for first, last in self._memory.stripes(d_in, width * both.element_size()):
            stripe, keys = self._products[first:last, first:], both[:, first:last]
            if stripe.device == device:
                stripe.addmm_(keys.T, both[:, first:])
            else:
                stripe.add_((keys.T @ both[:, first:]).to(stripe.device))
            self._memory.release()
        differences = both[:, d_in:]
        self._z_sum += both[:, :d_in].sum(dim=0)
        self._d_square += (differences * differences).sum()
        self._count += z.shape[0]

    def total(self) -> Moments:
        """The sums so far; those that are mapped stay in the file, and nothing may be added any more."""
        assert self._products is not None
        assert self._z_sum is not None
        assert self._d_square is not None
        products = self._products.cpu().numpy()
        d_in, width = products.shape[0], products.shape[1]
        ztz, ztd = products[:, :d_in], products[:, d_in:]
        if not self._memory.mapped:
            ztz, ztd = ztz.copy(), ztd.copy()
        for first, last in self._memory.stripes(d_in, width * products.itemsize):
            ztz[last:, first:last] = ztz[first:last, last:].T
            self._memory.release()
        return Moments(ztz, ztd, self._z_sum.cpu().numpy(), float(self._d_square), self._count)


class TokenRowsList:
    """Z and D of every kept token, written to their places in float32."""

    def __init__(self, work: WorkMemory, memory: StatisticsMemory, choice: TokenChoice) -> None:
        """Nothing taken yet; the widths are those of the first batch.

        Args:
            work: may be shared with sums.
            memory: where the rows lie.
            choice: how many tokens there are, and how many of them are kept.
        """
        self._work = work
        self._memory = memory
        self._choice = choice
        self._z: NDArray[np.float32] | None = None
        self._d: NDArray[np.float32] | None = None

    def add(
        self,
        places: NDArray[np.int64],
        z: torch.Tensor,
        plus: torch.Tensor,
        minus: torch.Tensor | None,
        weights: torch.Tensor | None,
    ) -> None:
        """Take the rows of a batch.

        Args:
            places: number of each token among those that are kept.
            z: as `WorkMemory.key_and_difference`, as are the others.
            plus: the same.
            minus: the same.
            weights: the same.
        """
        d_in = z.shape[1]
        if self._z is None or self._d is None:
            self._z = self._memory.zeros((self._choice.count, d_in), np.float32)
            self._d = self._memory.zeros((self._choice.count, plus.shape[1]), np.float32)
        both = self._work.key_and_difference(z, plus, minus, weights).cpu().numpy()
        self._z[places] = both[:, :d_in]
        self._d[places] = both[:, d_in:]
        self._memory.release()

    def total(self) -> TokenRows:
        """All rows, in the order of the pairs."""
        assert self._z is not None
        assert self._d is not None
        return TokenRows(self._z, self._d, self._choice.read)
