"""Rounding that keeps an edit: what the nearest values take from a row's change, other values of the row give back.

W lies on the grid of its dtype, so where |ΔW_j| is below half a spacing the nearest value to W_j + ΔW_j is W_j itself,
and the change is gone. Row by row, with x = W + ΔW exact, D = ΔW, n the nearest values, e = x - n their errors, and
n_j + d_j the other neighbour of x_j (so 0 <= e_j / d_j <= 1/2), this chooses which values to turn to their other
neighbour, y_j in {0, 1}, so that the row's delivered share is one with the least noise:

    minimise  Σ_j (e_j - y_j d_j)²    subject to    Σ_j (e_j - y_j d_j) D_j = 0.

Turning value j adds d_j² - 2 e_j d_j = 2 |d_j| m_j to the noise, m_j = |d_j| / 2 - |e_j| being how far x_j is from
the middle between its neighbours, and moves the sum by d_j D_j. That is a knapsack: p = Σ e_j D_j is to be bought, and
with s = sign(p) those values help whose gain s d_j D_j is positive. Its relaxation is solved by buying the cheapest
first, in order of cost over gain, which is 2 times

    τ_j = m_j / |D_j|,

until p is reached. (Turning all with τ_j <= λ is rounding x + s λ D to nearest, but never beyond the neighbours of x:
the edit is driven a little further, by what rounding eats.) The number of values is whole, so the last to be bought
leave or overshoot a part of p.

τ is compared with eight significant bits, those of bfloat16. Then the threshold is found by halving an interval of
16-bit numbers, and the values of one step are bought together or not at all, whichever leaves less of p:

    |Σ_j (W'_j - x_j) D_j|  <=  half the gain of the values of one step,     if all gains together reach p.

Every sum is over one row, by numpy's own loops and not by a BLAS, whose order of summation may depend on the number of
rows or threads. So a row's result depends on that row alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from alignez_bake.lowering.matrix_change import row_blocks
from alignez_bake.safetensors_io.dtypes import cast_once

if TYPE_CHECKING:
    from numpy.typing import NDArray

# A dozen float32 arrays of this many values stay near a core.
_BLOCK_VALUES: Final = 1 << 17
# float32's sign, exponent and first seven bits; the highest such number that is finite.
_KEY_SHIFT: Final = 16
_LAST_KEY: Final = 0x7F7F


class _Neighbours(NamedTuple):
    """Both neighbours of exact values.

    Attributes:
        nearest: bits of the nearest ones.
        other: bits of the others; those of the nearest where the value is exact.
        error: e, exact less nearest, in the dtype of the arithmetic.
        step: d, other less nearest; 0 where they are the same or not both are finite, so that nothing is gained there.
    """

    nearest: NDArray[np.unsignedinteger[Any]]
    other: NDArray[np.unsignedinteger[Any]]
    error: NDArray[Any]
    step: NDArray[Any]


def carried_rows(exact: NDArray[Any], change: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Rows rounded so that each keeps its own change.

    Args:
        exact: W' [n, columns], float32 or float64.
        change: ΔW, the same shape and dtype.
        dtype: of the file; narrower than that of `exact`.

    Returns:
        A new array [n, columns] of dtype `dtype`, each value one of the two neighbours of the exact one.
    """
    rows, columns = exact.shape
    stored = np.empty(exact.shape, dtype)
    # What is not finite comes out as nearest leaves it; who asked for the rows refuses it.
    with np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore"):
        for first, end in row_blocks(rows, columns, _BLOCK_VALUES):
            block = np.ascontiguousarray(exact[first:end])
            stored[first:end] = _carried(block, np.ascontiguousarray(change[first:end]), dtype)
    return stored


def _carried(exact: NDArray[Any], change: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    nearest, other, error, step = _neighbours(exact, dtype)
    lost = _row_sums(error * change)
    gains = step * change
    gains *= np.sign(lost)[:, None]
    np.maximum(gains, 0, out=gains)
    # The size of d / 2 - e is m; what gains nothing has a τ as well, which nobody asks for.
    step *= 0.5
    step -= error
    step /= change
    np.abs(step, out=step)
    keys = (step.astype(np.float32, copy=False).view(np.uint32) >> _KEY_SHIFT).astype(np.uint16)
    turned = keys < _bounds(keys, gains, np.abs(lost))
    turned &= gains > 0
    other -= nearest
    other *= turned
    other += nearest
    return other.view(dtype)


def _neighbours(exact: NDArray[Any], dtype: np.dtype[Any]) -> _Neighbours:
    """Nearest value and other neighbour, by the order of the bits, in which sign and magnitude are apart.

    The other neighbour of n is one step from zero where the error has n's sign, else one towards it. A nearest value
    of zero has the sign of what it stands for, so there the step is always from zero.
    """
    values = cast_once(exact, dtype)
    bits = values.view(f"u{dtype.itemsize}")
    nearest = values.astype(exact.dtype)
    error = exact - nearest
    away = np.signbit(error)
    away ^= np.signbit(nearest)
    np.logical_not(away, out=away)
    other = away.astype(bits.dtype)
    other += other
    other -= bits.dtype.type(1)
    other *= error != 0
    other += bits
    step = other.view(dtype).astype(exact.dtype)
    step -= nearest
    step[~np.isfinite(step)] = 0
    return _Neighbours(bits, other, error, step)


def _bounds(keys: NDArray[np.uint16], gains: NDArray[Any], wanted: NDArray[Any]) -> NDArray[np.uint16]:
    """For each row the key below which values are turned.

    A sum of more gains, added in the same order, is never smaller, rounding included. So the interval in which the
    bound lies can be halved, and where it begins changes nothing.

    Args:
        keys: of the values [n, columns]; those above `_LAST_KEY` belong to values without a change.
        gains: of the values, at least 0.
        wanted: of each row [n], at least 0.

    Returns:
        [n, 1].
    """
    chosen = np.empty(keys.shape, np.bool_)
    bought = np.empty_like(gains)

    def gained(bounds: NDArray[np.uint16]) -> NDArray[Any]:
        np.less(keys, bounds[:, None], out=chosen)
        np.multiply(gains, chosen, out=bought)
        return _row_sums(bought)

    low = keys.min(axis=1, initial=_LAST_KEY)
    high = np.full_like(low, _LAST_KEY + 1)
    at_low, at_high = np.zeros_like(wanted), np.full_like(wanted, np.inf)
    while (high - low).max(initial=0) > 1:
        middle = low + (high - low) // np.uint16(2)
        at_middle = gained(middle)
        enough = at_middle > wanted
        high, at_high = np.where(enough, middle, high), np.where(enough, at_middle, at_high)
        low, at_low = np.where(enough, low, middle), np.where(enough, at_low, at_middle)
    nearer: NDArray[np.uint16] = np.where(at_high - wanted < wanted - at_low, high, low)
    return nearer[:, None]


def _row_sums(values: NDArray[Any]) -> NDArray[Any]:
    sums: NDArray[Any] = np.add.reduce(values, axis=1)
    return sums
