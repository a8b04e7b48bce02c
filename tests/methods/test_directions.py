from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignez_bake.errors import BadInputError
from alignez_bake.methods.directions import directions_with_energy, top_directions
from alignez_bake.site import Site
from tests.methods.planted import orthonormal

SITE = Site("mlp_write", 4)


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 5))
def test_directions_are_the_leading_eigenvectors_and_point_to_the_mean(seed: int, rank: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(20, 7)) * np.arange(7, 0, -1) + rng.normal(size=7)
    found = top_directions(SITE, rows, rank)
    eigenvalues, eigenvectors = np.linalg.eigh(rows.T @ rows)
    leading = eigenvectors[:, ::-1][:, :rank]
    np.testing.assert_allclose(found.basis @ found.basis.T, leading @ leading.T, atol=1e-7)
    np.testing.assert_allclose(found.energies, eigenvalues[::-1][:rank] / eigenvalues.sum(), atol=1e-12)
    assert (rows.mean(axis=0) @ found.basis > 0).all()


def test_orientation_does_not_depend_on_the_order_of_the_rows() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(20, 7))
    np.testing.assert_allclose(top_directions(SITE, rows, 3).basis, top_directions(SITE, rows[::-1], 3).basis)


def test_without_a_mean_the_largest_entry_is_positive() -> None:
    rows = np.array([[-3.0, 1.0], [3.0, -1.0]])
    assert top_directions(SITE, rows, 1).basis[0, 0] > 0


@pytest.mark.parametrize(("share", "rank"), [(0.5, 1), (0.8, 2), (0.9, 3), (1.0, 4)])
def test_energy_takes_the_fewest_directions(share: float, rank: int) -> None:
    rng = np.random.default_rng(1)
    left, right = orthonormal(rng, 30, 4), orthonormal(rng, 10, 4)
    rows = left * np.sqrt([0.6, 0.25, 0.1, 0.05]) @ right.T
    found = directions_with_energy(SITE, rows, share)
    assert found.basis.shape == (10, rank)
    np.testing.assert_allclose(np.abs(found.basis.T @ right[:, :rank]), np.eye(rank), atol=1e-8)


def test_arbitrary_directions_are_refused() -> None:
    rows = np.outer(np.arange(1.0, 6.0), np.arange(1.0, 4.0))
    assert top_directions(SITE, rows, 1).basis.shape == (3, 1)
    with pytest.raises(BadInputError, match=r"mlp_write\.4: rank 2 .* span 1 directions"):
        top_directions(SITE, rows, 2)
    with pytest.raises(BadInputError, match=r"mlp_write\.4"):
        directions_with_energy(SITE, np.zeros((3, 3)), 0.9)
