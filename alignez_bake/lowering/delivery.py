"""How much of an edit survives rounding: the delivered share and what rounding adds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Of sums of squares that are far from float32's bounds.
_SMALLEST_PLAIN = 2.0**-80
_LARGEST_PLAIN = 2.0**80
_STRETCH = 1 << 15


@dataclass(frozen=True)
class Delivery:
    """How much of an edit survives rounding in one tensor.

    Attributes:
        name: the tensor.
        share: <W'_stored - W, ΔW> / ‖ΔW‖², 1 if rounding lost nothing; None if the formula changes nothing.
        residual: ‖W'_stored - W'‖ / ‖ΔW‖, rounding noise over edit; None likewise.
        relative_change: ‖ΔW‖ / ‖W‖; None where W is zero, such as a bias that never learnt.
    """

    name: str
    share: float | None
    residual: float | None
    relative_change: float | None


@dataclass(frozen=True)
class DeliverySums:
    """The sums over values that a delivery is made of, in units of 2 ** exponent (its square, for products).

    Attributes:
        aligned: <W'_stored - W, ΔW>.
        change: ‖ΔW‖².
        residual: ‖W'_stored - W'‖².
        base: ‖W‖².
        exponent: of the unit, so that no square overflows or vanishes; None of sums over unchanged values alone,
            whose unit is 1.
    """

    aligned: float = 0.0
    change: float = 0.0
    residual: float = 0.0
    base: float = 0.0
    exponent: int | None = None

    def __add__(self, other: DeliverySums) -> DeliverySums:
        """The sums over the values of both."""
        units = [sums.exponent for sums in (self, other) if sums.exponent is not None]
        if not units:
            return DeliverySums(base=self.base + other.base)
        unit = max(units)
        mine, others = self._in_units_of(unit), other._in_units_of(unit)
        aligned, change, residual, base = (a + b for a, b in zip(mine, others, strict=True))
        return DeliverySums(aligned, change, residual, base, unit)

    def _in_units_of(self, exponent: int) -> tuple[float, float, float, float]:
        shift = 2 * ((self.exponent or 0) - exponent)
        values = (self.aligned, self.change, self.residual, self.base)
        first, second, third, fourth = (_scaled(value, shift) for value in values)
        return first, second, third, fourth

    def delivery(self, name: str) -> Delivery:
        """The figures of a tensor whose values these are the sums over."""
        if self.change == 0.0:
            return Delivery(name, None, None, 0.0 if self.base > 0 else None)
        return Delivery(
            name,
            share=self.aligned / self.change,
            residual=math.sqrt(self.residual / self.change),
            relative_change=math.sqrt(self.change / self.base) if self.base > 0 else None,
        )


def delivery_sums(
    base: NDArray[Any], delta: NDArray[Any], stored: NDArray[Any], exact: NDArray[Any] | None = None
) -> DeliverySums:
    """The sums over some rows.

    With e = W'_stored - W', what rounding added, <W'_stored - W, ΔW> = ‖ΔW‖² + <e, ΔW>.

    Args:
        base: W [n, columns], float32 or float64.
        delta: ΔW in the same dtype.
        stored: W' as it was rounded, in any float dtype.
        exact: W + ΔW in the dtype of both, if it is at hand.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # an overflow, which is refused elsewhere
        error = stored.astype(base.dtype)
        error -= base + delta if exact is None else exact
        change = _squares(delta) if base.dtype == np.float32 else math.inf
    if is_plain(change, delta.size):
        return _sums(base, delta, error, change, 0)
    largest = max(float(delta.max(initial=0.0)), -float(delta.min(initial=0.0)))
    if largest == 0.0:
        return DeliverySums(base=_squares(base.astype(np.float64)))
    exponent = math.frexp(largest)[1]
    base, delta, error = (np.ldexp(part.astype(np.float64), -exponent) for part in (base, delta, error))
    return _sums(base, delta, error, _squares(delta), exponent)


def is_plain(change: float, size: int) -> bool:
    """Whether squares that were summed in float32 are far from its bounds.

    The largest change is between 2⁻⁴⁰ and 2⁴⁰ then, since its square is between change / size and change.

    Args:
        change: ‖ΔW‖².
        size: number of values.
    """
    return size * _SMALLEST_PLAIN <= change <= _LARGEST_PLAIN


def _sums(base: NDArray[Any], delta: NDArray[Any], error: NDArray[Any], change: float, exponent: int) -> DeliverySums:
    return DeliverySums(change + _dot(error, delta), change, _squares(error), _squares(base), exponent)


def _squares(values: NDArray[Any]) -> float:
    return _dot(values, values)


def _dot(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Stretch by stretch in the arrays' dtype, the stretches' sums in float64.

    In float32, n products that a core adds up in at least 8 lanes are off by at most n / 8 · 2⁻²⁴ of the sum of their
    magnitudes: 2⁻¹² for a stretch. `numpy.vecdot` over rows is as fast, but keeps other threads from working.
    """
    left, right = first.reshape(-1), second.reshape(-1)
    return math.fsum(
        float(np.dot(left[begin : begin + _STRETCH], right[begin : begin + _STRETCH]))
        for begin in range(0, left.size, _STRETCH)
    )


def _scaled(value: float, exponent: int) -> float:
    try:
        return math.ldexp(value, exponent)
    except OverflowError:
        return math.inf
