"""Can good and bad answers be told apart at a site? A linear probe on half of the queries, tested on the other half.

Of pair i let d_i [d] be the activation of its good answer less that of its bad one: what the query itself brings to
both is gone. The probe w is the ridge regression of 1 on the n differences D [n, d] of the first half, through the
origin, in the space of the pairs, since n is mostly less than d:

    minimise Σ_i (1 - w·d_i)² + μ ‖w‖²          w = Dᵀ (K + μ I)⁻¹ 1,    K = D Dᵀ                             (1)

which is Fisher's linear discriminant of the paired samples, shrunk. μ is that of a fixed grid with the least squared
error left out one at a time, in closed form: with H = K (K + μ I)⁻¹ the error at pair i is (1 - (H 1)_i) / (1 - H_ii).

A pair of the second half is told apart if w·d > 0: its good answer scores above its bad one. If the sides of pairs
were a coin's, so would that be, independently for each pair whatever w is, so the number of pairs told apart is
binomial with chance 1/2: the test is exact, with no permutations to draw. A difference of 0 counts as not told apart.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from alignez_bake.evaluation.rates import Rate, rate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Float64Array = NDArray[np.float64]

_PENALTIES: Final = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""μ over the mean of the diagonal of K."""


class Separability(NamedTuple):
    """How well held-out pairs are told apart.

    Attributes:
        held_out: their share, with its Wilson interval.
        p_value: chance of as many or more if sides meant nothing, exact, one-sided.
    """

    held_out: Rate
    p_value: float


def separability(differences: Float64Array, held_out: Sequence[bool]) -> Separability:
    """Probe and test.

    Args:
        differences: float64 [pairs, d], finite; good less bad.
        held_out: of each pair, whether it is tested on; at least two are not, and at least one is.
    """
    tested = np.asarray(held_out)
    direction = probe(differences[~tested])
    successes = int((differences[tested] @ direction > 0).sum())
    total = int(tested.sum())
    return Separability(rate(successes, total), binomial_tail(successes, total))


def probe(differences: Float64Array) -> Float64Array:
    """w of (1), float64 [d]; zeros where all differences are zero.

    Args:
        differences: float64 [n, d] with n >= 2.
    """
    scale = float(np.abs(differences).max(initial=0.0))
    if scale == 0.0:
        return np.zeros(differences.shape[1])
    scaled = differences / scale
    values, vectors = np.linalg.eigh(scaled @ scaled.T)
    values = np.maximum(values, 0.0)
    ones = vectors.T @ np.ones(len(scaled))
    best: tuple[float, Float64Array] | None = None
    for penalty in _PENALTIES:
        shrunk = 1.0 / (values + penalty * values.mean())
        # 1 - H = μ (K + μ I)⁻¹, so the error left out is that of the dual over the diagonal: μ cancels.
        dual = vectors @ (shrunk * ones)
        left_out = dual / (np.square(vectors) @ shrunk)
        error = float(np.square(left_out).sum())
        if best is None or error < best[0]:
            best = (error, dual)
    assert best is not None
    return np.asarray(scaled.T @ best[1])


def binomial_tail(successes: int, total: int) -> float:
    """P(X >= successes) for X binomial with `total` trials of chance 1/2, exact up to rounding."""
    ways = sum(math.comb(total, number) for number in range(successes, total + 1))
    return ways / (1 << total)


def cosine(one: Float64Array, other: Float64Array) -> float:
    """Of two vectors, neither of which is zero."""
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))
