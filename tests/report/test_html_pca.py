"""Principal components against planted directions, with signs that do not depend on the library."""

from __future__ import annotations

import numpy as np
import pytest

from alignez_bake.errors import BadInputError
from alignez_bake.report.html.pca import pca_of, projection_of

RNG = np.random.default_rng(1)
DIRECTIONS = np.linalg.qr(RNG.normal(size=(12, 2)))[0].T


def planted(rows: int, first: float, second: float) -> np.ndarray:
    """Rows around (first, second) on two planted directions, wider along the first."""
    along = RNG.normal(size=(rows, 2)) * (1.0, 0.4) + (first, second)
    return along @ DIRECTIONS + 0.01 * RNG.normal(size=(rows, 12)) + 100.0


def test_planted_directions_are_found_with_the_good_side_positive():
    good, bad = planted(80, 5, 1), planted(70, -5, -1)
    pca = pca_of(good, bad)
    assert abs(np.abs(pca.axes @ DIRECTIONS.T) - np.eye(2)).max() < 0.25
    np.testing.assert_allclose(pca.axes @ pca.axes.T, np.eye(2), atol=1e-12)
    gaps = pca.coordinates(good).mean(axis=0) - pca.coordinates(bad).mean(axis=0)
    assert gaps[0] > 0
    assert gaps[1] > 0
    swapped = pca_of(bad, good)
    np.testing.assert_allclose(swapped.axes[0], -pca.axes[0], atol=1e-9)


def test_explained_shares_are_those_of_the_covariance():
    good, bad = planted(50, 1, 0), planted(50, -1, 0)
    pca = pca_of(good, bad)
    values = np.linalg.eigvalsh(np.cov(np.concatenate([good, bad]).T))[::-1]
    np.testing.assert_allclose(pca.explained, values[:2] / values.sum(), rtol=1e-9)
    rows = np.concatenate([pca.coordinates(good), pca.coordinates(bad)])
    np.testing.assert_allclose(rows.mean(axis=0), 0, atol=1e-10)
    np.testing.assert_allclose(rows.var(axis=0, ddof=1), values[:2], rtol=1e-9)


def test_where_the_means_agree_the_largest_entry_is_positive():
    rows = np.zeros((4, 3))
    rows[:, 1] = (-3, 3, -3, 3)
    rows[:, 2] = (1, 1, -1, -1)
    pca = pca_of(rows, rows)
    np.testing.assert_allclose(pca.axes, [[0, 1, 0], [0, 0, 1]], atol=1e-12)


def test_after_lies_on_the_axes_of_before():
    good, bad = planted(40, 4, 0), planted(40, -4, 0)
    step = 2.5 * DIRECTIONS[0]
    projection = projection_of("attn_write.3", good, bad, good + step, bad + step)
    moved = projection.after.good - projection.before.good
    np.testing.assert_allclose(np.linalg.norm(moved, axis=1), 2.5, rtol=0.05)
    np.testing.assert_allclose(projection.after.explained, projection.before.explained, rtol=1e-9)
    assert projection.same_axes
    assert projection_of("x", good, bad).after is None


@pytest.mark.parametrize(
    ("good", "bad", "message"),
    [
        (np.zeros((3, 4)), np.zeros((3, 4)), "all the same"),
        (np.full((3, 4), 1e6), np.full((3, 4), 1e6), "all the same"),
        (np.zeros((3, 4)), np.zeros((3, 5)), "4 wide, bad ones 5"),
        (np.full((3, 4), np.nan), np.zeros((3, 4)), "good activations are not finite"),
        (np.zeros((0, 4)), np.zeros((3, 4)), r"good activations have shape \(0, 4\)"),
        (np.zeros((3, 4)), np.zeros((3, 1)), r"bad activations have shape \(3, 1\)"),
        (np.zeros(4), np.zeros((3, 4)), "shape"),
    ],
)
def test_what_has_no_components_is_refused(good, bad, message):
    with pytest.raises(BadInputError, match=message):
        pca_of(good, bad)


def test_one_side_alone_after_is_refused():
    with pytest.raises(BadInputError, match=r"mlp_write\.1: activations after need both"):
        projection_of("mlp_write.1", planted(5, 1, 1), planted(5, 0, 0), good_after=planted(5, 1, 1))
