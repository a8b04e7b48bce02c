"""What the derivations say of activations, against transformers' own functions and by maximisation."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from transformers.activations import ACT2FN

from alignez_bake.rehome.activations import RELU_ERRORS, RELU_SCALES, TANH_PIECES, piecewise_tanh


def function(name):
    """An activation of transformers as a function of float64 arrays."""
    return lambda values: ACT2FN[name](torch.as_tensor(values, dtype=torch.float64)).numpy()


GRID = np.concatenate([np.linspace(-12, 12, 24001), np.array([-1e4, -300.0, 300.0, 1e4])])


@pytest.mark.parametrize("name", RELU_ERRORS)
def test_two_units_are_the_identity(name):
    f = function(name)
    np.testing.assert_allclose(f(GRID) - f(-GRID), GRID, rtol=0, atol=1e-12 * np.abs(GRID).max())


@pytest.mark.parametrize("name", RELU_ERRORS)
def test_the_distance_to_relu_is_the_maximum(name):
    f = function(name)
    found = minimize_scalar(
        lambda t: -abs(float(max(t, 0.0) - f(np.array([t]))[0])), bounds=(0.0, 5.0), method="bounded",
        options={"xatol": 1e-12},
    )  # fmt: skip
    assert -found.fun == pytest.approx(RELU_ERRORS[name], abs=1e-9)
    assert np.abs(np.maximum(GRID, 0.0) - f(GRID)).max() <= RELU_ERRORS[name] + 1e-12
    assert RELU_ERRORS[name] < 0.2785


@pytest.mark.parametrize("name", RELU_ERRORS)
@pytest.mark.parametrize("dtype", RELU_SCALES)
def test_a_scaled_activation_is_as_close_to_relu_and_finite_in_its_dtype(name, dtype):
    scale, f = RELU_SCALES[dtype], ACT2FN[name]
    torch_dtype = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}[dtype]
    assert scale == 2 ** round(np.log2(scale))
    # As large as t may be: 2000 in F16, and far more than any activation elsewhere.
    t = torch.cat([torch.linspace(-3, 3, 6001), torch.tensor([-2000.0, -300.0, 300.0, 2000.0])]).to(torch_dtype)
    result = f(t * scale)
    assert result.isfinite().all()
    rounding = torch.finfo(torch_dtype).eps
    error = (result.double() / scale - t.double().clip(0)).abs()
    assert (error <= RELU_ERRORS[name] / scale + 8 * rounding * t.double().abs()).all()


def test_an_unsuitable_activation_is_not_offered():
    assert not {"relu2", "tanh", "sigmoid", "mish", "relu6", "leaky_relu"} & set(RELU_ERRORS)


@pytest.mark.parametrize("pieces", [1, 2, TANH_PIECES, 16])
def test_linear_pieces_stay_within_their_error_of_tanh(pieces):
    tanh = piecewise_tanh(pieces)
    grid = np.linspace(-30, 30, 600001)
    p = tanh.start + sum(
        change * np.maximum(grid - knot, 0.0) for knot, change in zip(tanh.knots, tanh.slope_changes, strict=True)
    )
    largest = np.abs(p - np.tanh(grid)).max()
    assert largest <= tanh.error + 1e-12
    assert largest >= 0.999 * tanh.error
    np.testing.assert_allclose(p, -p[::-1], atol=1e-12)
    assert len(tanh.knots) == len(tanh.slope_changes) == 2 * pieces
    assert sum(tanh.slope_changes) == pytest.approx(0.0, abs=1e-12)


def test_the_error_is_balanced_and_falls_with_the_square_of_the_pieces():
    errors = [piecewise_tanh(pieces).error for pieces in (4, 8, 16, 32)]
    ratios = [coarse / fine for coarse, fine in pairwise(errors)]
    assert all(3.3 < ratio < 4.1 for ratio in ratios)
    assert errors[1] < 0.005
    tanh = piecewise_tanh(TANH_PIECES)
    assert 1.0 - np.tanh(tanh.knots[-1]) == pytest.approx(tanh.error, rel=1e-6)
