"""The pooled sign filter: its bound against exact binomials, and what it drops and keeps of planted directions."""

from __future__ import annotations

from fractions import Fraction
from math import comb

import numpy as np
import pytest

from alignez_bake.methods.sign_filter import FEWEST_TESTED, LEVEL, fewest_agreeing, sign_agreement
from tests.methods.planted import orthonormal

WIDTH, PAIRS = 12, 60
SEEDS = 400


def _two_sided(pairs: int, count: int) -> Fraction:
    return Fraction(2 * sum(comb(pairs, i) for i in range(count, pairs + 1)), 2**pairs)


@pytest.mark.parametrize("level", [0.05, 0.05 / 7, 1e-4])
def test_the_bound_is_the_smallest_count_beyond_chance(level: float) -> None:
    for pairs in range(1, 80):
        needed = fewest_agreeing(pairs, level)
        if needed is None:
            assert _two_sided(pairs, pairs) > level
        else:
            assert _two_sided(pairs, needed) <= level < _two_sided(pairs, needed - 1)


def test_the_bound_of_many_pairs_is_that_of_the_normal_distribution() -> None:
    needed = fewest_agreeing(10_000, 0.05)
    assert needed is not None
    assert abs(needed - (5000 + 1.96 * 50)) < 2


def test_fewest_tested_is_where_full_agreement_starts_to_count() -> None:
    assert fewest_agreeing(FEWEST_TESTED, LEVEL) == FEWEST_TESTED
    assert fewest_agreeing(FEWEST_TESTED - 1, LEVEL) is None


def _planted(seed: int, agreeing: float) -> tuple[np.ndarray, np.ndarray]:
    """Differences with two planted directions, and these [d, 2], as right singular vectors turned to the mean.

    Along the first, stronger one each pair has a random sign; along the second a share `agreeing` is positive.
    """
    rng = np.random.default_rng(seed)
    planted = orthonormal(rng, WIDTH, 2)
    random_signs = rng.choice([-1.0, 1.0], PAIRS)
    shared_signs = np.where(rng.random(PAIRS) < agreeing, 1.0, -1.0)
    lengths = rng.uniform(0.8, 1.2, (PAIRS, 2)) * [9.0, 3.0]
    differences = np.stack([random_signs, shared_signs], axis=1) * lengths @ planted.T
    differences = differences + 0.1 * rng.normal(size=(PAIRS, WIDTH))
    basis = np.linalg.svd(differences, full_matrices=False)[2].T[:, :2]
    return differences, basis * np.where(differences.mean(axis=0) @ basis < 0.0, -1.0, 1.0)


def test_a_direction_of_random_sign_goes_and_a_shared_one_stays() -> None:
    agreement = sign_agreement(*_planted(0, agreeing=0.95))
    assert agreement.kept.tolist() == [False, True]
    assert agreement.pairs == PAIRS
    assert (
        agreement.why_dropped() == f"1 of 2 directions dropped: fewer than {agreement.needed} of 60 pairs on one side"
    )


def test_rates_of_false_drops_and_false_keeps_over_seeds() -> None:
    kept = np.array([sign_agreement(*_planted(seed, agreeing=0.85)).kept for seed in range(SEEDS)])
    # P(Bin(60, 0.85) < 40) is 6e-5, and the rotation of the SVD between the two moves few signs.
    false_drops = 1.0 - kept[:, 1].mean()
    assert false_drops <= 0.01
    # At most LEVEL / 2 a direction; four standard errors of a share over the seeds are allowed.
    bound = LEVEL / 2
    assert kept[:, 0].mean() <= bound + 4 * np.sqrt(bound * (1 - bound) / SEEDS)


def test_a_layer_without_anything_keeps_a_direction_at_most_as_often_as_the_level_says() -> None:
    found = 0
    for seed in range(SEEDS):
        differences = np.random.default_rng(seed).normal(size=(PAIRS, WIDTH))
        basis = np.linalg.svd(differences, full_matrices=False)[2].T
        basis = basis * np.where(differences.mean(axis=0) @ basis < 0.0, -1.0, 1.0)
        found += bool(sign_agreement(differences, basis).kept.any())
    assert found / SEEDS <= LEVEL + 4 * np.sqrt(LEVEL * (1 - LEVEL) / SEEDS)
    assert found > 0  # a filter that drops everything is none


def test_few_large_differences_do_not_outvote_many_small_ones() -> None:
    differences = np.concatenate([np.full(5, 100.0), np.full(55, -1.0)])[:, None]
    agreement = sign_agreement(differences, np.ones((1, 1)))
    assert differences.mean() > 0
    assert agreement.agreeing.tolist() == [5]
    assert not agreement.kept.any()


def test_too_many_directions_for_the_pairs_are_told_apart_from_disagreement() -> None:
    agreement = sign_agreement(np.ones((6, 2)), np.eye(2))
    assert agreement.needed is None
    assert not agreement.kept.any()
    assert "6 pairs are too few to tell any of so many from chance" in agreement.why_dropped()
    assert sign_agreement(np.ones((7, 2)), np.eye(2)).kept.all()
