"""Ways to round edited rows, side by side: those of the tool, and those it was chosen over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import numpy as np

from alignez_bake.lowering.rounding import round_rows
from alignez_bake.safetensors_io.dtypes import cast_once

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    FloatArray = NDArray[np.float32]

# Of the search for one multiplier a direction; more of them changed the third digit.
_SPAN_STEPS = 12


class Rows(NamedTuple):
    """What is to be rounded.

    Attributes:
        exact: W' = W + B A [n, d_in], float32.
        change: B A.
        directions: A [k, d_in].
        dtype: of the file.
    """

    exact: FloatArray
    change: FloatArray
    directions: FloatArray
    dtype: np.dtype[Any]


class Scheme(Protocol):
    """Rounds rows; `rng` is for those that draw."""

    def __call__(self, rows: Rows, rng: np.random.Generator) -> FloatArray:
        """The stored values [n, d_in], as float32."""
        ...


class _Choice(NamedTuple):
    """Nearest values n, their errors e = x - n, and the step d to the other neighbour (0 where x is on the grid)."""

    nearest: FloatArray
    error: FloatArray
    step: FloatArray

    @classmethod
    def of(cls, rows: Rows) -> _Choice:
        values = cast_once(rows.exact, rows.dtype)
        nearest = values.astype(np.float32)
        error = rows.exact - nearest
        bits = values.view(np.int16).astype(np.int32)
        moved = np.where(np.signbit(error) == np.signbit(nearest), 1, -1) * (error != 0)
        other = (bits + moved).astype(np.uint16).view(rows.dtype).astype(np.float32)
        return cls(nearest, error, other - nearest)


def nearest(rows: Rows, rng: np.random.Generator) -> FloatArray:
    """Each value for itself."""
    del rng
    return round_rows(rows.exact, rows.dtype).astype(np.float32)


def stochastic(rows: Rows, rng: np.random.Generator) -> FloatArray:
    """Up or down by chance, so that the mean is the exact value."""
    choice = _Choice.of(rows)
    share = choice.error / np.where(choice.step == 0, 1, choice.step)
    return choice.nearest + choice.step * (rng.random(share.shape, dtype=np.float32) < share)


def next_columns(rows: Rows, rng: np.random.Generator) -> FloatArray:
    """Column by column, largest first: of the two neighbours the one that leaves the smaller sums along A.

    With Q an orthonormal basis of the rows of A, and p = Σ e q over the columns seen so far: the choice that makes
    ‖p + e_j q_j‖ smaller. At rank one this carries each error to the next column.
    """
    del rng
    choice, basis = _Choice.of(rows), _basis(rows.directions)
    lengths = (basis * basis).sum(axis=0)
    stored = choice.nearest.copy()
    carried = np.zeros((len(stored), len(basis)), np.float32)
    for column in np.argsort(-lengths, kind="stable"):
        error, step = choice.error[:, column], choice.step[:, column]
        along = carried @ basis[:, column]
        turned = np.abs(along + lengths[column] * (error - step)) < np.abs(along + lengths[column] * error)
        carried += (error - step * turned)[:, None] * basis[:, column]
        stored[:, column] += step * turned
    return stored


def span(rows: Rows, rng: np.random.Generator) -> FloatArray:
    """The least noise whose sums along every row of A vanish, as far as whole values go.

    Values are turned to their other neighbour where x + λ Q is nearer to it, λ [k] of each row found by gradient steps
    of Barzilai and Borwein's length; the best of them is kept.
    """
    del rng
    choice, basis = _Choice.of(rows), _basis(rows.directions)
    margin = np.where(choice.step == 0, np.inf, np.abs(choice.step) / 2 - np.abs(choice.error))
    multiplier = np.zeros((len(margin), len(basis)), np.float32)
    left = choice.error @ basis.T
    length = np.ones((len(margin), 1), np.float32)
    best_size, best = np.linalg.norm(left, axis=1), np.zeros(margin.shape, np.bool_)
    for _ in range(_SPAN_STEPS):
        move = length * left
        multiplier += move
        turned = (multiplier @ basis) * np.sign(choice.step) > margin
        now = (choice.error - choice.step * turned) @ basis.T
        fell = left - now
        aligned, squares = (move * fell).sum(axis=1, keepdims=True), (fell * fell).sum(axis=1, keepdims=True)
        wished = np.where(aligned > 0, aligned / np.maximum(squares, np.finfo(np.float32).tiny), 4 * length)
        length, left = np.clip(wished, length / 4, 4 * length), now
        better = np.linalg.norm(left, axis=1) < best_size
        best_size = np.where(better, np.linalg.norm(left, axis=1), best_size)
        best[better] = turned[better]
    return choice.nearest + choice.step * best


def carry(rows: Rows, rng: np.random.Generator) -> FloatArray:
    """The tool's: the least noise whose sum along each row's own change vanishes."""
    del rng
    return round_rows(rows.exact, rows.dtype, change=rows.change).astype(np.float32)


def _basis(directions: FloatArray) -> FloatArray:
    """Orthonormal rows with the span of the given ones."""
    return np.ascontiguousarray(np.linalg.qr(directions.T.astype(np.float64))[0].T.astype(np.float32))


SCHEMES: Final[Mapping[str, Scheme]] = {
    "nearest": nearest,
    "stochastic": stochastic,
    "next columns": next_columns,
    "span of A": span,
    "carry": carry,
}
