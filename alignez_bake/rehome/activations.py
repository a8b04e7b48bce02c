"""Activations of MLPs, and what hidden units make of them: t exactly, relu(t) and tanh(t) within a bound.

Each activation here is f(t) = t h(t) with 0 <= h <= 1 and h(t) + h(-t) = 1:

    relu          h(t) = [t > 0] (one half at 0, where t h(t) = 0 anyway)
    silu          h(t) = σ(t), the logistic function: σ(t) + σ(-t) = 1
    gelu          h(t) = Φ(t), the normal distribution function: Φ(t) + Φ(-t) = 1
    gelu_new      h(t) = ½ (1 + tanh u(t)) with u(t) = √(2/π) (t + 0.044715 t³), an odd function
    quick_gelu    h(t) = σ(1.702 t)

Identity. f(t) - f(-t) = t h(t) + t h(-t) = t, exactly, with two units.

Relu. For t > 0, relu(t) - f(t) = t (1 - h(t)) = t h(-t); for t < 0, relu(t) - f(t) = -t h(t) = |t| h(-|t|). So

    |relu(t) - f(t)| = |t| h(-|t|) <= ε      with ε = max over t > 0 of t h(-t)

and, with β > 0, |relu(t) - f(βt)/β| <= ε/β. For silu, t h(-t) = t / (1 + eᵗ) is largest where t = 1 + W(1/e) = 1.2785,
with the value W(1/e) = 0.2785 (W: Lambert's function); quick_gelu is silu(1.702 t)/1.702. A power of two as β makes
both scalings exact in floating point.

Tanh. Its piecewise linear interpolation p through knots -t_m < ... < -t_1 < 0 < t_1 < ... < t_m, constant outside,

    p(t) = -tanh(t_m) + Σ_j a_j relu(t - k_j)       k_j = ±t_1 .. ±t_m, a_j: by how much the slope changes there

(none at 0: p is odd, so its slopes beside 0 are the same). Where tanh is concave, the chord over [a, b] with slope m is
farthest from it where sech²(t) = m, that is, where tanh(t) = √(1 - m): a closed form. The knots are placed so that each
piece has the same largest error e and so has the constant end, 1 - tanh(t_m) = e.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise
from typing import Final, NamedTuple

# ε by the activation's name in transformers.
RELU_ERRORS: Final[dict[str, float]] = {
    "relu": 0.0,
    **dict.fromkeys(("silu", "swish"), 0.2784645427610738),
    **dict.fromkeys(("gelu", "gelu_python"), 0.1699712074799037),
    **dict.fromkeys(
        ("gelu_new", "gelu_fast", "gelu_accurate", "gelu_pytorch_tanh", "gelu_python_tanh"), 0.1700407505712541
    ),
    "quick_gelu": 0.2784645427610738 / 1.702,
}

# β by the dtype in which weights are stored. Large, so that ε/β vanishes beside the dtype's own rounding; small enough
# that βt stays finite: below 65504 in F16, that is, for |t| < 2047. F64 and F32 have room for |t| up to 2⁸⁰. So would
# BF16, but such checkpoints are run in F16 as well, and converted to it: |t| < 64 there, and ε/β is a tenth of BF16's
# own rounding of t = 1.
RELU_SCALES: Final[dict[str, float]] = {"F64": 2.0**40, "F32": 2.0**24, "BF16": 2.0**10, "F16": 2.0**5}

TANH_PIECES: Final = 8
"""Linear pieces of tanh on each side of 0; 16 units for each column, within 0.005."""


class PiecewiseTanh(NamedTuple):
    """tanh(t) = start + Σ_j slope_changes[j] · relu(t - knots[j]), within `error`, for every t."""

    start: float
    knots: tuple[float, ...]
    slope_changes: tuple[float, ...]
    error: float


@cache
def piecewise_tanh(pieces: int = TANH_PIECES) -> PiecewiseTanh:
    """The interpolation of tanh by `pieces` lines on each side of 0 and a constant beyond, errors balanced.

    The largest error falls as `pieces` grows: walking from 0 with pieces of error e, one ends beyond the point where
    1 - tanh = e if e was too large, and before it if it was too small. So e is found by bisection.

    Args:
        pieces: at least 1.
    """
    low, high = 0.0, 1.0
    while (error := (low + high) / 2) not in (low, high):
        reached = _walk(error, pieces)[-1]
        low, high = (low, error) if 1.0 - math.tanh(reached) <= error else (error, high)
    right = _walk(high, pieces)
    slopes = [(math.tanh(b) - math.tanh(a)) / (b - a) for a, b in pairwise(right)]
    changes = [after - before for before, after in pairwise([*slopes, 0.0])]
    knots = right[1:]
    end = math.tanh(right[-1])
    largest = max([1.0 - end, *(chord_error(a, b) for a, b in pairwise(right))])
    return PiecewiseTanh(
        start=-end,
        knots=(*(-knot for knot in reversed(knots)), *knots),
        slope_changes=(*(-change for change in reversed(changes)), *changes),
        error=largest,
    )


def chord_error(a: float, b: float) -> float:
    """Largest distance between tanh and its chord over [a, b], 0 <= a < b."""
    slope = (math.tanh(b) - math.tanh(a)) / (b - a)
    height = math.sqrt(max(0.0, 1.0 - slope))
    return height - (math.tanh(a) + slope * (math.atanh(height) - a))


def _walk(error: float, pieces: int) -> list[float]:
    """Knots from 0 on, each chord as long as its error allows."""
    knots = [0.0]
    for _ in range(pieces):
        # A chord from a is never farther off than 1 - tanh(a), so it may have no end; tanh(20) is 1 in float64.
        low, high = knots[-1], 20.0
        if low < high and chord_error(low, high) > error:
            while (middle := (low + high) / 2) not in (low, high):
                low, high = (middle, high) if chord_error(knots[-1], middle) <= error else (low, middle)
        knots.append(high)
    return knots
