"""Rounding of rows: neighbours only, the change of a row survives, at the least noise, whatever the blocks."""

from __future__ import annotations

from itertools import pairwise, product

import ml_dtypes
import numpy as np
import pytest

from alignez_bake.errors import BadInputError
from alignez_bake.lowering import error_carrying
from alignez_bake.lowering.delivery import delivery_sums
from alignez_bake.lowering.rounding import arithmetic_tolerance, is_neighbour, round_rows
from alignez_bake.safetensors_io.dtypes import cast_once

BF16 = np.dtype(ml_dtypes.bfloat16)
FP16 = np.dtype(np.float16)
FP32 = np.dtype(np.float32)
FP8 = np.dtype(ml_dtypes.float8_e4m3fn)
NARROW = [BF16, FP16, FP8]


def rows_on_grid(dtype, *, rows=48, columns=512, relative=1e-3, rank=4, seed=0, tails=None, arithmetic=np.float32):
    """Weights that lie on the grid, and a low-rank change of a given relative size: (W, ΔW, W')."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(rows, columns)) if tails is None else rng.standard_t(tails, size=(rows, columns))
    base = cast_once(0.05 * weights, dtype).astype(arithmetic)
    change = rng.normal(size=(rows, rank)) @ rng.normal(size=(rank, columns))
    change *= relative * np.linalg.norm(base) / np.linalg.norm(change)
    exact = base + change.astype(arithmetic)
    return base, exact - base, exact


def share(base, change, stored):
    return delivery_sums(base, change, stored).delivery("w").share


def residual(base, change, stored):
    return delivery_sums(base, change, stored).delivery("w").residual


def all_values(dtype):
    """Every finite value of a dtype of at most 16 bits, ascending, in float64; zero once."""
    bits = np.arange(1 << (8 * dtype.itemsize)).astype(f"u{dtype.itemsize}")
    with np.errstate(invalid="ignore"):
        values = bits.view(dtype).astype(np.float64)
    return np.unique(values[np.isfinite(values)])


def both_neighbours(exact, dtype):
    """By a search among all values: (below or equal, above or equal)."""
    grid = all_values(dtype)
    exact = exact.astype(np.float64)
    below = grid[np.clip(np.searchsorted(grid, exact, side="right") - 1, 0, None)]
    above = grid[np.clip(np.searchsorted(grid, exact, side="left"), None, len(grid) - 1)]
    return below, above


def hard_rows(dtype):
    """Values of every size, both signs, subnormal ones, ties, the grid itself, and the largest ones."""
    rng = np.random.default_rng(1)
    grid = all_values(dtype)
    middles = (grid[1:] + grid[:-1]) / 2
    between = grid[:-1] + rng.random(len(grid) - 1) * (grid[1:] - grid[:-1])
    values = np.concatenate([grid, middles, between, [0.0, -0.0]])
    rng.shuffle(values)
    columns = 61
    return values[: len(values) // columns * columns].reshape(-1, columns)


# Neighbours


@pytest.mark.parametrize("arithmetic", [np.float32, np.float64])
@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_carried_values_are_neighbours_of_the_exact_ones(dtype, arithmetic):
    exact = hard_rows(dtype).astype(arithmetic)
    change = np.random.default_rng(2).normal(size=exact.shape).astype(arithmetic)
    stored = round_rows(exact, dtype, change=change)
    below, above = both_neighbours(exact, dtype)
    found = stored.astype(np.float64)
    assert ((found == below) | (found == above)).all()
    assert stored.dtype == dtype
    assert (found != cast_once(exact, dtype).astype(np.float64)).any(), "nothing was carried"
    assert is_neighbour(exact, stored).all()


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_neighbours_are_told_from_all_others(dtype):
    exact = hard_rows(dtype)
    below, above = both_neighbours(exact, dtype)
    grid = all_values(dtype)
    for neighbour, further in ((below, -1), (above, 1)):
        assert is_neighbour(exact, neighbour.astype(dtype)).all()
        places = np.searchsorted(grid, neighbour) + further
        inside = (places >= 0) & (places < len(grid))
        beyond = grid[np.clip(places, 0, len(grid) - 1)].astype(dtype)
        assert inside.any()
        assert not is_neighbour(exact, beyond)[inside].any()


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_a_value_on_the_grid_has_no_neighbour_but_itself(dtype):
    grid = all_values(dtype)
    stored = grid.astype(dtype)
    assert is_neighbour(grid, stored).all()
    assert not is_neighbour(grid[1:], stored[:-1]).any()
    assert not is_neighbour(grid[:-1], stored[1:]).any()


def test_what_is_not_finite_is_no_neighbour():
    stored = np.array([np.inf, -np.inf, np.nan, 1.0, 1.0, np.inf], BF16)
    assert not is_neighbour(np.array([np.inf, -np.inf, np.nan, np.inf, np.nan, 1e39]), stored).any()


def test_a_tolerance_admits_as_much_as_it_says():
    spacing = 2.0**-7
    exact, stored = np.array([1.0 + 1.25 * spacing]), np.array([1.0], BF16)
    assert not is_neighbour(exact, stored).any()
    assert not is_neighbour(exact, stored, 0.24 * spacing).any()
    assert is_neighbour(exact, stored, 0.26 * spacing).all()


@pytest.mark.parametrize("rank", [1, 4, 64])
def test_arithmetic_in_float32_stays_within_its_tolerance(rank):
    """So what was rounded after float32 arithmetic is a neighbour of what float64 gives."""
    rng = np.random.default_rng(rank)
    base = cast_once(rng.normal(size=(64, 256)), BF16).astype(np.float64)
    left, right = rng.normal(size=(64, rank)), 1e-2 * rng.normal(size=(rank, 256))
    exact = base + left @ right
    change = left.astype(np.float32) @ right.astype(np.float32)
    computed = base.astype(np.float32) + change
    bound = arithmetic_tolerance(np.abs(base) + np.abs(left) @ np.abs(right), rank, FP32)
    assert (np.abs(computed - exact) <= bound).all()
    assert np.abs(computed - exact).max() > bound.min() / 100, "a bound that is never come near to shows nothing"
    stored = round_rows(computed, BF16, change=change)
    assert is_neighbour(exact, stored, bound).all()


def test_a_value_on_the_grid_that_arithmetic_missed_needs_the_tolerance():
    """1 + 2⁻⁷ + 2⁻²³ computed for 1 + 2⁻⁷ may be stored as 1 + 2⁻⁶."""
    exact, stored = np.array([1 + 2.0**-7]), np.array([1 + 2.0**-6], BF16)
    assert not is_neighbour(exact, stored).any()
    assert is_neighbour(exact, stored, arithmetic_tolerance(exact, 1, FP32)).all()


# What survives


@pytest.mark.parametrize("tails", [None, 3], ids=["normal", "heavy tails"])
@pytest.mark.parametrize("rank", [1, 16])
@pytest.mark.parametrize("relative", [1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
def test_a_change_survives_however_small(dtype, relative, rank, tails):
    base, change, exact = rows_on_grid(dtype, columns=1536, relative=relative, rank=rank, tails=tails)
    assert share(base, change, round_rows(exact, dtype, change=change)) == pytest.approx(1.0, abs=0.02)


def test_nearest_loses_what_carrying_keeps():
    base, change, exact = rows_on_grid(BF16, relative=1e-4)
    assert share(base, change, round_rows(exact, BF16)) < 0.2
    assert share(base, change, round_rows(exact, BF16, change=change)) > 0.98


def test_carrying_is_far_less_noisy_than_chance():
    base, change, exact = rows_on_grid(BF16, relative=1e-3)
    below, above = both_neighbours(exact, BF16)
    gap = np.where(above > below, above - below, 1.0)
    up = np.random.default_rng(0).random(exact.shape) < (exact - below) / gap
    stochastic = np.where(up, above, below).astype(BF16)
    assert share(base, change, stochastic) == pytest.approx(1.0, abs=0.05)
    carried = residual(base, change, round_rows(exact, BF16, change=change))
    assert carried < 0.7 * residual(base, change, stochastic)
    assert carried < 1.25 * residual(base, change, round_rows(exact, BF16))


@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
def test_each_row_keeps_its_own_change_up_to_one_step_of_the_search(dtype):
    """At most half the gain of the values whose cost over gain agrees in eight bits is left; here of a few."""
    base, change, exact = rows_on_grid(dtype, relative=1e-3)
    del base
    stored = round_rows(exact, dtype, change=change).astype(np.float64)
    below, above = both_neighbours(exact, dtype)
    left = np.abs(((stored - exact) * change).sum(axis=1))
    most = ((above - below) * np.abs(change)).max(axis=1)
    wanted = np.abs(((round_rows(exact, dtype).astype(np.float64) - exact) * change).sum(axis=1))
    assert (left <= np.maximum(2 * most, 1e-6 * wanted)).all()
    assert left.sum() < 0.05 * wanted.sum()


def test_no_other_choice_keeps_as_much_at_less_noise():
    """Against all 2¹⁰ choices of neighbours of each row; costs over gains are compared with eight bits."""
    base, change, exact = rows_on_grid(BF16, rows=20, columns=10, relative=3e-3)
    del base
    exact, change = exact.astype(np.float64), change.astype(np.float64)
    nearest = cast_once(exact, BF16).astype(np.float64)
    stored = round_rows(exact, BF16, change=change).astype(np.float64)
    below, above = both_neighbours(exact, BF16)
    turned_rows = 0
    for row in range(len(exact)):
        choices = np.array(list(product(*zip(below[row], above[row], strict=True))))
        towards = change[row] * np.sign((exact[row] - nearest[row]) @ change[row])
        gains = (choices - nearest[row]) @ towards
        noise = ((choices - exact[row]) ** 2).sum(axis=1)
        own_gain = (stored[row] - nearest[row]) @ towards
        own_noise = ((stored[row] - exact[row]) ** 2).sum()
        floor = ((nearest[row] - exact[row]) ** 2).sum()
        rivals = noise[gains >= own_gain - 1e-18] - floor
        assert own_noise - floor <= rivals.min() * (1 + 2.0**-7) + 1e-18
        turned_rows += own_gain > 0
    assert turned_rows >= 10


def test_a_row_that_does_not_change_is_rounded_to_nearest():
    _, change, exact = rows_on_grid(BF16)
    exact = exact + np.float32(1e-5)
    change[::2] = 0
    stored, nearest = round_rows(exact, BF16, change=change), cast_once(exact, BF16)
    assert stored[::2].tobytes() == nearest[::2].tobytes()
    assert (stored[1::2] != nearest[1::2]).any(axis=1).all()


def test_values_that_are_stored_exactly_stay():
    base, change, exact = rows_on_grid(BF16)
    exact[:, ::3] = base[:, ::3]
    stored = round_rows(exact, BF16, change=change)
    assert np.array_equal(stored[:, ::3].astype(np.float32), base[:, ::3])


# Edges


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_carrying_never_overflows(dtype):
    largest = float(all_values(dtype)[-1])
    step = largest - float(all_values(dtype)[-2])
    exact = np.array([[largest + 0.4 * step, -largest - 0.4 * step, largest, 1.0]])
    for sign in (1.0, -1.0):
        change = sign * np.array([[step, -step, step, 1e-9]])
        stored = round_rows(exact, dtype, change=change).astype(np.float64)
        assert stored.tolist() == [[largest, -largest, largest, 1.0]]


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_a_value_that_could_only_overflow_is_as_if_it_were_not_there(dtype):
    _, change, exact = rows_on_grid(dtype, relative=3e-2)
    largest = float(all_values(dtype)[-1])
    beyond = largest + 0.4 * (largest - float(all_values(dtype)[-2]))
    wider = np.insert(exact.astype(np.float64), 7, beyond, axis=1), np.insert(change.astype(np.float64), 7, 0, axis=1)
    alone = round_rows(exact.astype(np.float64), dtype, change=change.astype(np.float64))
    assert (alone != cast_once(exact, dtype)).any(axis=1).all(), "nothing was carried"
    stored = round_rows(wider[0], dtype, change=wider[1])
    assert (stored[:, 7].astype(np.float64) == largest).all()
    others = np.delete(stored.astype(np.float64), 7, axis=1)
    # Sums over one more zero may be added in another order, and move a threshold by a value.
    assert (others != alone.astype(np.float64)).sum(axis=1).max() <= 2


def test_a_tie_is_turned_only_where_it_helps():
    """Values in the middle cost nothing to turn, so those on the wrong side would be the first to be turned."""
    spacing = 2.0**-7
    middle = 1 + spacing / 2  # to nearest, ties to even: 1
    lost = 0.1 * spacing
    for sign in (1.0, -1.0):
        exact = sign * np.array([[middle, middle, *[1 + lost] * 8]])
        change = sign * np.array([[1e-3 * spacing, -1e-3 * spacing, *[lost] * 8]])
        stored = round_rows(exact, BF16, change=change).astype(np.float64)
        assert sign * stored[0, 0] == 1 + spacing
        assert sign * stored[0, 1] == 1
        assert (sign * stored[0, 2:]).tolist().count(1 + spacing) in {0, 8}


def test_what_nearest_overflows_stays_infinite_and_harms_no_other_row():
    base, change, exact = rows_on_grid(BF16)
    del base
    alone = round_rows(exact, BF16, change=change)
    exact[3, 5] = 3.4e38
    exact[4, 6] = np.nan
    stored = round_rows(exact, BF16, change=change)
    others = [row for row in range(len(exact)) if row not in (3, 4)]
    assert np.isinf(stored[3, 5].astype(np.float32))
    assert np.isnan(stored[4, 6].astype(np.float32))
    assert stored[others].tobytes() == alone[others].tobytes()


@pytest.mark.parametrize("arithmetic", [np.float32, np.float64])
def test_blocks_of_rows_change_no_byte(arithmetic, monkeypatch):
    _, change, exact = rows_on_grid(BF16, rows=97, columns=333, arithmetic=arithmetic)
    whole = round_rows(exact, BF16, change=change)
    for borders in ([0, 1, 2, 97], [0, 50, 97], list(range(98))):
        pieces = [round_rows(exact[a:b], BF16, change=change[a:b]) for a, b in pairwise(borders)]
        assert np.concatenate(pieces).tobytes() == whole.tobytes()
    monkeypatch.setattr(error_carrying, "_BLOCK_VALUES", 1000)
    assert round_rows(exact, BF16, change=change).tobytes() == whole.tobytes()
    columns_first = round_rows(np.asfortranarray(exact), BF16, change=np.asfortranarray(change))
    assert columns_first.tobytes() == whole.tobytes()


def test_what_is_given_is_not_changed():
    _, change, exact = rows_on_grid(BF16)
    copies = exact.copy(), change.copy()
    round_rows(exact, BF16, change=change)
    assert np.array_equal(exact, copies[0])
    assert np.array_equal(change, copies[1])


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (1, 1)])
def test_empty_and_single_values(shape):
    exact = np.full(shape, 1 + 2.0**-9, np.float32)
    stored = round_rows(exact, BF16, change=np.full(shape, 2.0**-9, np.float32))
    assert stored.shape == shape
    assert (stored.astype(np.float32) == 1).all()


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=str)
def test_nearest_is_one_rounding(dtype):
    exact = np.random.default_rng(0).normal(size=(7, 33))
    assert round_rows(exact, dtype).tobytes() == cast_once(exact, dtype).tobytes()


def test_float64_into_float32_carries_too():
    base, change, exact = rows_on_grid(FP32, relative=1e-8, arithmetic=np.float64)
    assert share(base, change, round_rows(exact, FP32)) < 0.7
    assert share(base, change, round_rows(exact, FP32, change=change)) == pytest.approx(1.0, abs=0.02)


def test_nothing_is_rounded_where_the_dtype_stays():
    _, change, exact = rows_on_grid(BF16)
    assert round_rows(exact, FP32, change=change) is exact


@pytest.mark.parametrize(
    ("exact", "change", "reason"),
    [
        (np.zeros((2, 3), np.float16), None, "dtype float16, not float32 or float64"),
        (np.zeros((2, 3)), np.zeros((2, 4)), r"\[2, 3\] of float64 and their change \[2, 4\] of float64"),
        (np.zeros((2, 3)), np.zeros((2, 3), np.float32), "one shape and dtype"),
        (np.zeros(3), np.zeros(3), "must be matrices"),
    ],
)
def test_what_does_not_fit_is_refused(exact, change, reason):
    with pytest.raises(BadInputError, match=reason):
        round_rows(exact, BF16, change=change)
