"""How sure a rate is whose answers belong to few queries.

Answers to one query are alike, so n answers to G queries say less than n independent ones. With v_i the value of
answer i, m their mean and q(i) its query, the variance of m that takes only queries as independent is

    G / (G - 1) · Σ_q ( Σ_{i: q(i) = q} (v_i - m) )² / n²

the cluster-robust estimate (Liang and Zeger, Biometrika 73, 1986). The differences of two candidates on the same
answers are values too: what makes some queries easier for both then cancels. Intervals are those of
`evaluation.query_draws`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from alignez_bake.evaluation.query_draws import Estimate, QueryDraws, interval

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Float64Array = NDArray[np.float64]

_RESAMPLES: Final = 4_000
_MOST_RESAMPLES: Final = 20_000


@dataclass(frozen=True)
class ClusteredMean(Estimate):
    """A mean with its 95 % interval and its standard error, both clustered by query."""

    standard_error: float


def standard_error(values: Float64Array, queries: int) -> float:
    """The clustered standard error of the mean of `values`, as the module says.

    Args:
        values: float64 [n]; value i belongs to query i modulo `queries`.
        queries: their number; at least two of them have a value.
    """
    sums = _per_query(values - values.mean(), queries)
    groups = len(sums)
    return float(np.sqrt(groups / (groups - 1) * np.square(sums).sum()) / len(values))


def estimate(values: Float64Array, queries: int, *, seed: int, among: int = 1) -> ClusteredMean:
    """Mean, standard error, and percentile bootstrap interval over queries.

    Args:
        values: float64 [n]; value i belongs to query i modulo `queries`.
        queries: their number; at least two of them have a value.
        seed: of the resamples; the same seed resamples the same queries.
        among: how many means there are to choose from, as for `query_draws.interval`.
    """
    sums, counts = _per_query(values, queries), _per_query(np.ones_like(values), queries)
    drawn = QueryDraws(len(sums), seed, min(_RESAMPLES * among, _MOST_RESAMPLES)).means(sums, counts)
    low, high = interval(drawn, among=among)
    return ClusteredMean(float(values.mean()), low, high, standard_error(values, queries))


def _per_query(values: Float64Array, queries: int) -> Float64Array:
    """Sums over each query that has a value."""
    asked = min(queries, len(values))
    sums = np.bincount(np.arange(len(values)) % queries, weights=values, minlength=asked)
    return sums.astype(np.float64, copy=False)
