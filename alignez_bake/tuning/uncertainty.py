"""How sure a rate is whose answers belong to few queries.

Answers to one query are alike, so n answers to G queries say less than n independent ones. With v_i the value of
answer i, m their mean and q(i) its query, the variance of m that takes only queries as independent is

    G / (G - 1) · Σ_q ( Σ_{i: q(i) = q} (v_i - m) )² / n²

the cluster-robust estimate (Liang and Zeger, Biometrika 73, 1986). The differences of two candidates on the same
answers are values too: what makes some queries easier for both then cancels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Float64Array = NDArray[np.float64]

_RESAMPLES: Final = 4_000
_MOST_RESAMPLES: Final = 20_000
_TAIL: Final = 2.5


@dataclass(frozen=True)
class Estimate:
    """A mean with its standard error and its 95 % interval, all clustered by query."""

    value: float
    standard_error: float
    low: float
    high: float


def standard_error(values: Float64Array, queries: int) -> float:
    """The clustered standard error of the mean of `values`, as the module says.

    Args:
        values: float64 [n]; value i belongs to query i modulo `queries`.
        queries: their number; at least two of them have a value.
    """
    sums = _per_query(values - values.mean(), queries)
    groups = len(sums)
    return float(np.sqrt(groups / (groups - 1) * np.square(sums).sum()) / len(values))


def estimate(values: Float64Array, queries: int, *, seed: int, among: int = 1) -> Estimate:
    """Mean, standard error, and percentile bootstrap interval over queries.

    Of many means the best one is good by luck too. With `among` of them each interval leaves out 5 % / among, so that
    with 95 % all of them hold what they should (Bonferroni), whichever is looked at in the end.

    Args:
        values: float64 [n]; value i belongs to query i modulo `queries`.
        queries: their number; at least two of them have a value.
        seed: of the resamples; the same seed resamples the same queries.
        among: how many means there are to choose from.
    """
    sums, counts = _per_query(values, queries), _per_query(np.ones_like(values), queries)
    groups = len(sums)
    size = min(_RESAMPLES * among, _MOST_RESAMPLES)
    times = np.random.default_rng(seed).multinomial(groups, np.full(groups, 1.0 / groups), size=size)
    low, high = np.percentile((times @ sums) / (times @ counts), [_TAIL / among, 100.0 - _TAIL / among])
    return Estimate(float(values.mean()), standard_error(values, queries), float(low), float(high))


def _per_query(values: Float64Array, queries: int) -> Float64Array:
    """Sums over each query that has a value."""
    asked = min(queries, len(values))
    sums = np.bincount(np.arange(len(values)) % queries, weights=values, minlength=asked)
    return sums.astype(np.float64, copy=False)
