"""What of recorded statistics no ridge can be fitted to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from alignez_bake.capture.statistics import TokenRows
from alignez_bake.errors import BadInputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from alignez_bake.capture.statistics import Moments
    from alignez_bake.site import Site

_SMALLEST_SPREAD: Final = 1e-12
"""Share of tr ZᵀZ below which what is left is rounding of float32 activations summed in float64."""
_BLOCK: Final = 512
"""Rows turned into float64 at a time."""


class _Sums(NamedTuple):
    """Whether all values are finite, tr ZᵀZ, Σ z_t, ‖D‖²."""

    finite: bool
    energy: float
    z_sum: NDArray[np.float64]
    d_square: float


def checked_energy(site: Site, recorded: Moments | TokenRows) -> float:
    """‖D‖² of statistics that a ridge can be fitted to.

    Args:
        site: for messages.
        recorded: ZᵀZ and ZᵀD, or Z and D.

    Raises:
        BadInputError: values that are not finite; inputs that are zero or the same at every token; differences that are
            zero.
    """
    sums = _of_rows(recorded) if isinstance(recorded, TokenRows) else _of_moments(recorded)
    if not sums.finite:
        raise BadInputError(f"{site}: activations are not finite: nothing can be fitted")
    if recorded.count == 0 or sums.energy == 0.0:
        raise BadInputError(f"{site}: its inputs are zero at every token: nothing can be fitted")
    spread = sums.energy - float(sums.z_sum @ sums.z_sum) / recorded.count
    if not spread > _SMALLEST_SPREAD * sums.energy:
        raise BadInputError(f"{site}: its inputs are the same at all {recorded.count} tokens: nothing can be fitted")
    if sums.d_square == 0.0:
        raise BadInputError(f"{site}: its output is the same under both personas: there is no difference to fit")
    return sums.d_square


def _of_moments(moments: Moments) -> _Sums:
    finite = np.isfinite(moments.ztz).all() and np.isfinite(moments.ztd).all() and np.isfinite(moments.d_square)
    return _Sums(bool(finite), float(np.trace(moments.ztz)), moments.z_sum, moments.d_square)


def _of_rows(rows: TokenRows) -> _Sums:
    energy, d_square = _square_sum(rows.z), _square_sum(rows.d)
    finite = bool(np.isfinite(energy) and np.isfinite(d_square))
    return _Sums(finite, energy, rows.z.sum(axis=0, dtype=np.float64), d_square)


def _square_sum(values: NDArray[np.float32]) -> float:
    parts = (values[first : first + _BLOCK] for first in range(0, len(values), _BLOCK))
    return sum(float(np.square(part, dtype=np.float64).sum()) for part in parts)
