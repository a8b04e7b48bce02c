"""Rounding once: against exact arithmetic, not against another cast."""

import warnings
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignez_bake.safetensors_io import cast_once, file_dtype_of, is_plain_float, numpy_dtype_of
from alignez_bake.safetensors_io.dtypes import BY_NAME

BF16 = np.dtype(ml_dtypes.bfloat16)


def nearest_bf16(value):
    """The nearest bf16 by exact fractions, ties to the even one; for finite values within bf16's range."""
    bits = np.array(value, np.float32).view(np.uint32) >> 16
    around = (np.arange(-2, 3) + int(bits)).astype(np.uint16).view(BF16)
    around = [x for x in around if np.isfinite(x) and (x == 0 or (x > 0) == (value > 0))]
    exact = Fraction(value)
    return min(around, key=lambda x: (abs(Fraction(float(x)) - exact), int(x.view(np.uint16)) & 1))


@given(st.floats(min_value=-1e38, max_value=1e38, allow_nan=False))
def test_fp64_becomes_the_nearest_bf16(value):
    got = cast_once(np.array(value), BF16)
    assert got.dtype == BF16
    assert got.shape == ()
    assert float(got) == float(nearest_bf16(value))


@given(st.integers(-(2**8), 2**8), st.integers(-126, 120), st.sampled_from([-(2.0**-40), 0.0, 2.0**-40]))
def test_fp64_near_ties_is_not_rounded_twice(odd, exponent, nudge):
    value = np.ldexp(1 + (2 * abs(odd) + 1) * 2.0**-8 + nudge, exponent) * (1 if odd > 0 else -1)
    if abs(value) < 3e38:
        assert float(cast_once(np.array(value), BF16)) == float(nearest_bf16(float(value)))


def test_the_trap_is_real():
    value = np.array([1 + 2**-8 + 2**-40])
    assert float(value.astype(BF16)[0]) == 1.0  # ml_dtypes by itself rounds twice
    assert float(cast_once(value, BF16)[0]) == 1 + 2**-7


def test_special_values_and_overflow_without_warnings():
    values = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0, 1e300, -1e39, 3.4e38, 5e-324])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = cast_once(values, BF16).astype(float)
        assert cast_once(np.array([1e300]), np.dtype(np.float32))[0] == np.inf
    np.testing.assert_array_equal(got, [np.inf, -np.inf, np.nan, 0, -0.0, np.inf, -np.inf, np.inf, 0])
    assert list(np.signbit(got[3:5])) == [False, True]


def test_same_dtype_is_not_copied_and_the_argument_is_not_changed():
    values = np.array([1 / 3, 2 / 3])
    before = values.copy()
    assert cast_once(values, values.dtype) is values
    cast_once(values, BF16)
    np.testing.assert_array_equal(values, before)


@pytest.mark.parametrize("name", [n for n, d in BY_NAME.items() if d.numpy is not None])
def test_names_and_numpy_dtypes_are_one_to_one(name):
    dtype = numpy_dtype_of(name)
    assert file_dtype_of(dtype) == name
    assert dtype.itemsize * 8 == BY_NAME[name].bits


def test_kinds():
    assert {n for n in BY_NAME if is_plain_float(n)} == {"F64", "F32", "F16", "BF16"}
    assert file_dtype_of(np.dtype(">f4")) == "F32"


def test_unknown_dtypes_are_refused_by_name():
    with pytest.raises(ValueError, match=r"longdouble|float128|complex128"):
        file_dtype_of(np.dtype(np.complex128))
    with pytest.raises(ValueError, match=r"'Q8'.*BF16"):
        numpy_dtype_of("Q8")
    with pytest.raises(ValueError, match="'F4' packs values"):
        numpy_dtype_of("F4")
