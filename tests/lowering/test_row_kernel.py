"""The compiled rows: within the bounds that are derived, the same bits however they are cut, and nothing unchecked."""

from __future__ import annotations

import shutil
import sysconfig
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from alignez_bake.errors import BadInputError
from alignez_bake.lowering import row_kernel
from alignez_bake.lowering.delivery import is_plain
from alignez_bake.lowering.rounding import arithmetic_tolerance
from alignez_bake.lowering.row_kernel import VARIABLE, add_product, edit_rows, row_backend, why_not_compiled
from alignez_bake.safetensors_io.dtypes import cast_once

BF16, F16 = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16)
U = 2.0**-24
# One value; fewer than a vector; whole vectors; more than a strip of columns and than rows of one product; no term.
SHAPES = [(1, 1, 1), (3, 7, 2), (6, 16, 16), (13, 300, 5), (7, 1031, 33), (4, 40, 0)]

needs_kernel = pytest.mark.skipif(why_not_compiled() is not None, reason=str(why_not_compiled()))


def matrices(rows, columns, inner, dtype, seed=0):
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(rows, columns)).astype(dtype)
    left, right = (rng.normal(size=shape).astype(np.float32) for shape in ((rows, inner), (inner, columns)))
    return base, left, right


def edited(base, left, right, dtype=None):
    out = np.empty(base.shape, base.dtype if dtype is None else dtype)
    return out, edit_rows(base, left, right, out)


def bits(values):
    return values.view(np.uint16)


def test_where_there_is_a_compiler_the_kernel_was_built():
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(compiler) is None or not Path(sysconfig.get_path("include"), "Python.h").is_file():
        pytest.skip("no compiler")
    assert "not built" not in (why_not_compiled() or ""), "install again: pip install --editable ."


@needs_kernel
@pytest.mark.parametrize("result", [BF16, F16], ids=str)
@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows_are_the_formula_within_its_bound(shape, dtype, result):
    base, left, right = matrices(*shape, dtype)
    out, seen = edited(base, left, right, result)
    exact = base.astype(np.float64) + left.astype(np.float64) @ right
    magnitude = np.abs(base.astype(np.float64)) + np.abs(left).astype(np.float64) @ np.abs(right)
    slack = arithmetic_tolerance(magnitude, shape[2], np.dtype(np.float32))
    low, high = (cast_once(exact + sign * slack, result).astype(np.float64) for sign in (-1, 1))
    assert seen.finite
    assert ((low <= out) & (out.astype(np.float64) <= high)).all()
    # Nothing but the nearest value would do, except at ties, which are an eighth of fp16's values in bf16.
    assert np.mean(low == high) > 0.8


@needs_kernel
@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
def test_a_value_has_the_same_bits_however_rows_and_columns_are_cut(dtype):
    base, left, right = matrices(23, 533, 17, dtype)
    whole, _ = edited(base, left, right)
    for cut in (1, 5, 6, 22):
        parts = [edited(base[rows], left[rows], right)[0] for rows in (slice(0, cut), slice(cut, None))]
        np.testing.assert_array_equal(bits(np.concatenate(parts)), bits(whole))
    for columns in (slice(0, 1), slice(3, 260), slice(517, 533)):
        part, _ = edited(np.ascontiguousarray(base[:, columns]), left, np.ascontiguousarray(right[:, columns]))
        np.testing.assert_array_equal(bits(part), bits(np.ascontiguousarray(whole[:, columns])))
    assert edit_rows(base, left, right, base).finite  # into its own place
    np.testing.assert_array_equal(bits(base), bits(whole))


@needs_kernel
@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
def test_every_kind_of_value_is_rounded_to_nearest_ties_to_even(dtype):
    """Each upper half of a float32, with lower halves below, at and above a tie of bf16, and one of fp16."""
    upper = np.arange(1 << 16, dtype=np.uint32)[:, np.newaxis] << 16
    lower = np.uint32([0, 1, 0x0FFF, 0x1000, 0x1001, 0x2000, 0x3000, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
    exact = (upper | lower).view(np.float32).reshape(-1)
    expected = cast_once(exact, dtype)
    finite = np.isfinite(expected.astype(np.float32))
    exact, expected = exact[finite][np.newaxis], expected[finite][np.newaxis]
    assert (exact.astype(np.float64) != expected.astype(np.float64)).any()
    out, seen = edited(np.zeros(exact.shape, dtype), np.float32([[1.0]]), exact)
    assert seen.finite
    # 0 + x is x but for the sign of zero.
    np.testing.assert_array_equal(out.astype(np.float64), expected.astype(np.float64))


@needs_kernel
@pytest.mark.parametrize(
    ("dtype", "tie", "largest"), [(BF16, 2.0**128 - 2.0**119, 2.0**128 - 2.0**120), (F16, 65520.0, 65504.0)], ids=str
)
@pytest.mark.parametrize("column", [0, 8, 19])
def test_what_overflows_is_reported(dtype, tie, largest, column):
    for sign in (1, -1):
        right = np.zeros((1, 20), np.float32)
        right[0, column] = sign * tie
        base, one = np.zeros((1, 20), dtype), np.float32([[1.0]])
        assert not edited(base, one, right)[1].finite
        right[0, column] = np.nextafter(right[0, column], np.float32(0))
        out, seen = edited(base, one, right)
        assert seen.finite
        assert out[0, column] == sign * largest


@needs_kernel
@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_base_that_is_not_finite_is_reported(value, dtype):
    for row, column in ((0, 0), (6, 7), (8, 18)):
        base, left, right = matrices(9, 19, 2, dtype)
        total = np.zeros((2, 19))
        assert edited(base, left, right)[1].finite
        assert add_product(base, left, total, 4)
        base[row, column] = value
        assert not edited(base, left, right)[1].finite
        assert not add_product(base, left, total, 4)


@needs_kernel
@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (7, 15), (40, 1031)], ids=str)
def test_the_sums_are_those_of_the_values(shape, dtype):
    base, _, right = matrices(*shape, 1, dtype)
    left = np.float32(np.arange(shape[0])[:, np.newaxis] % 3)  # so that ΔW is exact
    out, seen = edited(base, left, right)
    change, single = left * right, base.astype(np.float32)
    error = (out.astype(np.float32) - (single + change)).astype(np.float64)
    single, change = single.astype(np.float64), change.astype(np.float64)
    sums = {"base": single * single, "change": change * change, "aligned": error * change, "residual": error * error}
    for name, products in sums.items():
        assert abs(getattr(seen, name) - products.sum()) <= 33 * U * np.abs(products).sum(), name
    assert shape == (1, 1) or all(np.abs(products).sum() > 0 for products in sums.values())


@needs_kernel
def test_sums_that_float32_cannot_hold_are_told_apart():
    base = np.ones((2, 9), BF16)
    for size, plain in ((1e-25, False), (1e-3, True), (1e25, False), (0.0, False)):
        seen = edited(base, np.float32([[1.0], [1.0]]), np.full((1, 9), size, np.float32))[1]
        assert is_plain(seen.change, base.size) == plain


@needs_kernel
@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
@pytest.mark.parametrize(("shape", "block"), [((1, 1, 1), 1), ((10, 7, 3), 4), ((37, 301, 17), 16), ((5, 20, 0), 9)])
def test_products_are_within_their_bound(shape, block, dtype):
    base, left, _ = matrices(*shape, dtype)
    start = np.random.default_rng(1).normal(size=(shape[2], shape[1]))
    total = start.copy()
    assert add_product(base, left, total, block)
    base, left = base.astype(np.float64), left.astype(np.float64)
    exact = left.T @ base
    lengths = np.linalg.norm(left, axis=0)[:, np.newaxis] * np.linalg.norm(base, axis=0)
    assert (np.abs(total - start - exact) <= (min(block, shape[0]) + 2) * U * lengths).all()


@needs_kernel
def test_products_have_the_same_bits_where_calls_begin_with_a_block():
    base, left, _ = matrices(40, 77, 9, BF16)
    whole, parts = np.zeros((9, 77)), np.zeros((9, 77))
    add_product(base, left, whole, 8)
    for rows in (slice(0, 24), slice(24, 32), slice(32, None)):
        add_product(base[rows], left[rows], parts, 8)
    np.testing.assert_array_equal(parts, whole)
    expected = np.zeros_like(whole)
    for first in range(0, 40, 8):
        add_product(base[first : first + 8], left[first : first + 8], expected, 1 << 40)
    np.testing.assert_array_equal(expected, whole)


@needs_kernel
def test_rows_at_an_odd_address_are_read_and_written():
    base, left, right = matrices(3, 21, 4, BF16)
    expected, _ = edited(base, left, right)
    memory = np.zeros(2 * base.nbytes + 2, np.uint8)
    places = memory[1 : 1 + base.nbytes], memory[1 + base.nbytes : 1 + 2 * base.nbytes]
    stored, out = (place.view(BF16).reshape(base.shape) for place in places)
    stored[:] = base
    edit_rows(stored, left, right, out)
    np.testing.assert_array_equal(out.astype(np.float32), expected.astype(np.float32))
    assert memory[0] == memory[-1] == 0


@needs_kernel
def test_memory_that_is_no_matrix_of_these_sizes_is_refused():
    from alignez_bake.lowering import _row_kernel

    base, left, right, out = (np.zeros(size, np.uint8) for size in (2 * 12, 4 * 6, 4 * 8, 2 * 12))
    good = (base, left, right, out, 3, 4, 2, 0, 0)
    assert _row_kernel.edit_rows(*good)[0]
    huge = 1 << 62
    for number, value, says in [
        (0, base[:-1], "base has 23 bytes, not the 24"),
        (1, left[4:], "left has 20 bytes"),
        (2, right[4:], "right has 28 bytes"),
        (3, out[2:], "out has 22 bytes"),
        (4, -3, "a size is -3"),
        (4, huge, "too many"),
        (5, huge, "too many"),
        (6, huge, "too many"),
        (7, 2, "kind 2 is unknown"),
        (8, -1, "kind -1 is unknown"),
    ]:
        with pytest.raises(ValueError, match=says):
            _row_kernel.edit_rows(*good[:number], value, *good[number + 1 :])
    with pytest.raises(ValueError, match="multiple of 4"):
        _row_kernel.edit_rows(base, np.zeros(25, np.uint8)[1:], right, out, 3, 4, 2, 0, 0)
    fixed = out.copy()
    fixed.setflags(write=False)
    with pytest.raises((BufferError, TypeError, ValueError)):
        _row_kernel.edit_rows(base, left, right, fixed, *good[4:])
    stored, factor, total = (np.zeros(size, np.uint8) for size in (2 * 12, 4 * 6, 8 * 8))
    good = (stored, factor, total, 3, 4, 2, 5, 0)
    assert _row_kernel.add_product(*good)
    for number, value, says in [
        (0, stored[1:], "stored has 23 bytes"),
        (1, factor[4:], "right has 20 bytes"),
        (2, total[8:], "total has 56 bytes"),
        (5, huge, "too many"),
        (6, -1, "a size is -1"),
        (6, 0, "a block has no rows"),
        (7, 7, "kind 7 is unknown"),
    ]:
        with pytest.raises(ValueError, match=says):
            _row_kernel.add_product(*good[:number], value, *good[number + 1 :])


@needs_kernel
def test_arrays_of_other_kinds_are_refused():
    base, left, right = matrices(4, 6, 2, BF16)
    out = np.empty_like(base)
    for arguments, says in [
        ((base.astype(np.float32), left, right, out), "not float32"),
        ((base, left.astype(np.float64), right, out), "not float64"),
        ((base, left, right, out[:3]), "have no room"),
        ((base[:, ::2], left, right[:, ::2], np.empty((4, 3), BF16)), "not contiguous"),
        ((base, left, np.asfortranarray(right), out), "contiguous"),
    ]:
        with pytest.raises(ValueError, match=says):
            edit_rows(*arguments)
    with pytest.raises(ValueError, match="not float32"):
        add_product(base, left, np.zeros((2, 6), np.float32), 4)


def test_what_computes_is_asked_for_or_found(monkeypatch):
    assert row_backend({VARIABLE: "numpy"}) == "numpy"
    assert row_backend({}) == row_backend({VARIABLE: ""}) == ("numpy" if why_not_compiled() else "compiled")
    with pytest.raises(BadInputError, match="ALIGNEZ_BAKE_ROWS is 'fast': set it to compiled or numpy"):
        row_backend({VARIABLE: "fast"})
    monkeypatch.setattr(row_kernel, "find_spec", lambda name: None)
    assert row_backend({VARIABLE: ""}) == "numpy"
    with pytest.raises(BadInputError, match="is 'compiled', but the compiled rows were not built"):
        row_backend({VARIABLE: "compiled"})
