"""The closed form against numpy's own least squares, on made-up rows."""

from __future__ import annotations

import numpy as np
import pytest

from alignez_bake.capture.statistics import Moments
from alignez_bake.errors import BadInputError
from alignez_bake.refit.least_squares import fit_affine, fit_through_origin
from alignez_bake.site import Site

SITE = Site("mlp_write", 0)


def moments_of(x, h):
    return Moments.of(np.column_stack([x, np.ones(len(x))]), h)


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 12)) @ rng.normal(size=(12, 12)) + 3.0
    return x, np.tanh(x @ rng.normal(size=(12, 3)) / 5.0) + 0.5


def test_the_affine_map_is_that_of_lstsq(rows):
    x, h = rows
    found = fit_affine(SITE, moments_of(x, h))
    expected = np.linalg.lstsq(np.column_stack([x, np.ones(len(x))]), h, rcond=None)[0]
    assert np.linalg.norm(found.matrix - expected[:-1]) <= 1e-8 * np.linalg.norm(expected)
    assert np.linalg.norm(found.constant - expected[-1]) <= 1e-8 * np.linalg.norm(expected)
    assert np.linalg.norm(expected[-1]) > 0.1


def test_the_map_through_the_origin_is_that_of_lstsq(rows):
    x, h = rows
    found, of_one = fit_through_origin(SITE, moments_of(x, h))
    expected = np.linalg.lstsq(x, np.column_stack([h, np.ones(len(x))]), rcond=None)[0]
    assert np.linalg.norm(found - expected[:, :-1]) <= 1e-8 * np.linalg.norm(expected)
    assert np.linalg.norm(of_one - expected[:, -1]) <= 1e-8 * np.linalg.norm(expected)
    affine = fit_affine(SITE, moments_of(x, h)).matrix
    assert np.linalg.norm(found - affine) > 1e-2 * np.linalg.norm(affine)


def test_moments_of_two_halves_give_the_same_map(rows):
    x, h = rows
    whole = fit_affine(SITE, moments_of(x, h))
    merged = fit_affine(SITE, moments_of(x[:150], h[:150]).merged_with(moments_of(x[150:], h[150:])))
    assert np.linalg.norm(whole.matrix - merged.matrix) <= 1e-10 * np.linalg.norm(whole.matrix)
    half = fit_affine(SITE, moments_of(x[:150], h[:150]))
    assert np.linalg.norm(whole.matrix - half.matrix) > 1e-3 * np.linalg.norm(whole.matrix)


@pytest.mark.parametrize("mean", [0.0, 300.0])
def test_rows_that_do_not_span_the_space_are_fitted_exactly_all_the_same(mean):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(300, 5)) @ rng.normal(size=(5, 20)) + mean
    h = x @ rng.normal(size=(20, 2)) + 1.0
    found = fit_affine(SITE, moments_of(x, h))
    centred = h - h.mean(axis=0)
    error = h - x @ found.matrix - found.constant
    assert np.square(error).sum() <= 1e-10 * np.square(centred).sum()
    # The least of the maps that do it, or near it: directions without data are not used.
    smallest = np.linalg.lstsq(x - x.mean(axis=0), centred, rcond=1e-10)[0]
    assert np.linalg.norm(found.matrix) <= 1.01 * np.linalg.norm(smallest)


def test_rows_of_zeros_give_the_mean_or_nothing():
    x, h = np.zeros((10, 3)), np.full((10, 2), 2.0)
    affine = fit_affine(SITE, moments_of(x, h))
    assert not affine.matrix.any()
    assert np.array_equal(affine.constant, [2.0, 2.0])
    assert not any(part.any() for part in fit_through_origin(SITE, moments_of(x, h)))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("solve", [fit_affine, fit_through_origin])
def test_sums_that_are_not_finite_are_refused(rows, solve):
    x, h = rows
    with pytest.raises(BadInputError, match=r"mlp_write\.0: activations are not finite"):
        solve(SITE, moments_of(x, np.where(h > 1.0, np.inf, h)))
