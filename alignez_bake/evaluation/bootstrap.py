"""Figures of an evaluation with their intervals, over queries that are resampled (`query_draws`)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

import numpy as np

from alignez_bake.evaluation.query_draws import Estimate, QueryDraws, interval
from alignez_bake.evaluation.rates import gap_closed, rate
from alignez_bake.language_model.sampling import derived_seed

if TYPE_CHECKING:
    from numpy.typing import NDArray

DRAWS: Final = 2000
_PER_CENT: Final = 100


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
    """Percentile intervals over queries that are drawn with replacement.

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
        return Estimate(found, *interval(self._means(values)))

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
            return Estimate(successes / total, *interval(self._means(values)))
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
        low, high = interval(of_tuned - of_base)
        point = gap_closed(*(mean for mean in means if mean is not None))
        if low <= 0 <= high or point is None:
            return Gap(None, None, None, "the interval of tuned - base includes 0: there is no gap to close")
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = _PER_CENT * (of_ours - of_base) / (of_tuned - of_base)
        return Gap(point, *interval(ratios))

    @staticmethod
    def _mean(values: NDArray[np.float64]) -> float | None:
        there = values[~np.isnan(values)]
        return float(there.mean()) if there.size else None

    def _means(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The mean of each draw, [draws]; NaN of a draw without any value."""
        there = ~np.isnan(values)
        sums = np.where(there, values, 0.0).sum(axis=1)
        return self._drawn.means(sums, there.sum(axis=1).astype(np.float64))

    @cached_property
    def _drawn(self) -> QueryDraws:
        return QueryDraws(self.queries, derived_seed(self.seed, "bootstrap"), self.draws)
