"""The alignment score against its double sum, and its two ends."""

from __future__ import annotations

import numpy as np
import pytest

from alignez_bake.methods.alignment_score import alignment_score
from tests.methods.planted import orthonormal

WIDTH = 10


def test_the_score_is_the_mean_product_of_two_different_pairs() -> None:
    rng = np.random.default_rng(0)
    differences, basis = rng.normal(size=(7, WIDTH)) + 0.5, orthonormal(rng, WIDTH, 3)
    products = [(basis.T @ differences[i]) @ (basis.T @ differences[j]) for i in range(7) for j in range(7) if i != j]
    expected = np.mean(products) / np.mean(np.linalg.norm(differences, axis=1) ** 2)
    np.testing.assert_allclose(alignment_score(differences, basis), expected, rtol=1e-12)
    np.testing.assert_allclose(alignment_score(1e-6 * differences, basis), expected, rtol=1e-12)


def test_it_is_one_for_equal_differences_and_zero_for_opposite_halves() -> None:
    direction = orthonormal(np.random.default_rng(0), WIDTH, 1)
    equal = np.tile(direction.T, (6, 1))
    assert alignment_score(equal, direction) == pytest.approx(1.0)
    signs = np.array([1.0, -1.0] * 3)[:, None]
    assert alignment_score(signs * equal, direction) == pytest.approx(-1 / 5)


@pytest.mark.parametrize("pairs", [5, 50])
def test_labels_that_mean_nothing_score_zero_on_average_however_few_pairs_there_are(pairs: int) -> None:
    scores, plain = [], []
    for seed in range(400):
        differences = np.random.default_rng(seed).normal(size=(pairs, WIDTH))
        basis = np.linalg.svd(differences, full_matrices=False)[2].T[:, :3]
        scores.append(alignment_score(differences, basis))
        plain.append(np.square(differences.mean(axis=0) @ basis).sum() * pairs / np.square(differences).sum())
    assert abs(np.mean(scores)) <= 4 * np.std(scores) / np.sqrt(len(scores))
    assert np.mean(plain) > 4 * np.std(plain) / np.sqrt(len(plain))  # what the double sum leaves out
