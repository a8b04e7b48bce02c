"""Intervals by resampling queries: answers to one query are alike, so they are drawn together or not at all."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

import numpy as np

from alignez_bake.evaluation.rates import gap_closed, rate
from alignez_bake.language_model.sampling import derived_seed

if TYPE_CHECKING:
    from numpy.typing import NDArray

DRAWS: Final = 2000
_TAIL: Final = 2.5
_BLOCK: Final = 4_000_000  # entries of a block of weights: 32 MB
_PER_CENT: Final = 100


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float

    def as_json(self) -> dict[str, float]:
        """The figure and both ends."""
        return {"value": self.value, "low": self.low, "high": self.high}

    def times(self, factor: float) -> Estimate:
        """In another unit; the factor is above 0."""
        return Estimate(self.value * factor, self.low * factor, self.high * factor)


@dataclass(frozen=True)
class Gap:
    """How much of a gap is closed.

    Attributes:
        value: per cent; None where there is no gap to speak of.
        low: lower end of the 95 % interval; None where there is no value.
        high: upper end.
        reason: why there is none, or empty.
    """

    value: float | None
    low: float | None
    high: float | None
    reason: str = ""

    def as_json(self) -> dict[str, float | str | None]:
        """Value, both ends, and the reason."""
        return {"value": self.value, "low": self.low, "high": self.high, "reason": self.reason}


@dataclass(frozen=True)
class QueryBootstrap:
    """Percentile intervals over queries that are drawn with replacement (B. Efron, 1979).

    All figures of one bootstrap see the same draws, so that differences and ratios of models are paired.

    Values are float64 [queries, samples]; NaN where there is none. A mean runs over all values that are there.

    Attributes:
        queries: how many there are.
        seed: of the draws.
        draws: how many.
    """

    queries: int
    seed: int
    draws: int = DRAWS

    def mean(self, values: NDArray[np.float64]) -> Estimate | None:
        """The mean with its interval; None where no value is there."""
        found = self._mean(values)
        if found is None:
            return None
        return self._estimate(found, self._means(values))

    def share(self, true: NDArray[np.bool_]) -> Estimate:
        """The share of true values.

        With one sample a query the trials are independent, and the interval is Wilson's. With more it is the
        bootstrap's, unless all are alike: then every draw is too, and Wilson's for as many trials as queries stands,
        which is wider than needed, but does not claim certainty.

        Args:
            true: bool [queries, samples].
        """
        successes, total = int(true.sum()), true.size
        if true.shape[1] > 1 and 0 < successes < total:
            values = true.astype(np.float64)
            return self._estimate(successes / total, self._means(values))
        found = rate(successes * self.queries // total, self.queries)
        return Estimate(found.value, found.low, found.high)

    def gap(self, base: NDArray[np.float64], ours: NDArray[np.float64], tuned: NDArray[np.float64]) -> Gap:
        """100 · (ours - base) / (tuned - base), of means, with the interval of the ratio.

        A ratio whose denominator may be 0 has no interval of use: where that of tuned - base holds 0, there is none.

        Args:
            base: values of the base.
            ours: of the edited model.
            tuned: of the tuned model.
        """
        means = [self._mean(values) for values in (base, ours, tuned)]
        if any(mean is None for mean in means):
            return Gap(None, None, None, "no answers of some model were judged")
        of_base, of_ours, of_tuned = (self._means(values) for values in (base, ours, tuned))
        room = of_tuned - of_base
        room = room[np.isfinite(room)]
        low, high = np.percentile(room, (_TAIL, _PER_CENT - _TAIL))
        point = gap_closed(*(mean for mean in means if mean is not None))
        if low <= 0 <= high or point is None:
            return Gap(None, None, None, "the interval of tuned - base includes 0: there is no gap to close")
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = _PER_CENT * (of_ours - of_base) / (of_tuned - of_base)
        ratios = ratios[np.isfinite(ratios)]
        low, high = np.percentile(ratios, (_TAIL, _PER_CENT - _TAIL))
        return Gap(point, float(low), float(high))

    @staticmethod
    def _mean(values: NDArray[np.float64]) -> float | None:
        there = values[~np.isnan(values)]
        return float(there.mean()) if there.size else None

    def _means(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The mean of each draw, [draws]; NaN of a draw without any value."""
        there = ~np.isnan(values)
        sums = np.where(there, values, 0.0).sum(axis=1)
        counts = there.sum(axis=1)
        with np.errstate(invalid="ignore"):
            return np.asarray(self._drawn(sums) / self._drawn(counts.astype(np.float64)))

    def _drawn(self, of_queries: NDArray[np.float64]) -> NDArray[np.float64]:
        """The sum over each draw's queries, [queries] -> [draws]."""
        return np.concatenate([weights @ of_queries for weights in self._weights])

    @cached_property
    def _weights(self) -> list[NDArray[np.int16]]:
        """How often each draw has each query, in blocks [some draws, queries]."""
        generator = np.random.default_rng(derived_seed(self.seed, "bootstrap"))
        rows = max(1, _BLOCK // self.queries)
        even = np.full(self.queries, 1 / self.queries)
        return [
            generator.multinomial(self.queries, even, size=min(rows, self.draws - start)).astype(np.int16)
            for start in range(0, self.draws, rows)
        ]

    @staticmethod
    def _estimate(value: float, draws: NDArray[np.float64]) -> Estimate:
        low, high = np.percentile(draws[np.isfinite(draws)], (_TAIL, _PER_CENT - _TAIL))
        return Estimate(value, float(low), float(high))
