import numpy as np
import pytest
from scipy import stats

from alignez_bake.feasibility.separability import _PENALTIES, binomial_tail, cosine, probe, separability

PAIRS, WIDTH = 60, 300
HELD_OUT = [number % 2 == 1 for number in range(PAIRS)]


def differences(shift, seed=0):
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=WIDTH)
    return rng.normal(size=(PAIRS, WIDTH)) + shift * direction / np.linalg.norm(direction)


def test_a_planted_direction_is_found_on_held_out_pairs():
    found = separability(differences(8.0), HELD_OUT)
    assert found.held_out.total == 30
    assert found.held_out.successes >= 28
    assert found.p_value < 1e-6


def test_where_there_is_none_chance_is_what_is_found():
    p_values = np.array([separability(differences(0.0, seed), HELD_OUT).p_value for seed in range(200)])
    assert 0.02 <= (p_values < 0.1).mean() <= 0.12  # discrete, so at most the level
    assert p_values.min() > 1e-5


def test_the_probe_is_the_ridge_whose_error_left_out_is_least():
    rng = np.random.default_rng(3)
    values = rng.normal(size=(12, 5)) + 0.7
    scale = abs(values).max()
    errors, probes = [], []
    for penalty in _PENALTIES:
        mu = penalty * np.square(values).sum() / len(values)

        def fitted(rows, mu=mu):
            return np.linalg.solve(rows.T @ rows + mu * np.eye(5), rows.sum(axis=0))

        left_out = [1 - values[i] @ fitted(np.delete(values, i, axis=0)) for i in range(len(values))]
        errors.append(np.square(left_out).sum())
        probes.append(fitted(values))
    found = probe(values)
    assert np.ptp(errors) > 0.1
    assert found / scale == pytest.approx(probes[int(np.argmin(errors))], rel=1e-8)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_scale_does_not_matter(scale):
    plain, scaled = (separability(values, HELD_OUT) for values in (differences(3.0), scale * differences(3.0)))
    assert plain == scaled


def test_a_difference_of_nothing_is_not_told_apart():
    found = separability(np.zeros((10, 4)), [False] * 5 + [True] * 5)
    assert (found.held_out.successes, found.p_value) == (0, 1.0)


@pytest.mark.parametrize(("successes", "total"), [(0, 7), (5, 7), (7, 7), (60, 100), (1000, 1900)])
def test_the_binomial_tail_is_exact(successes, total):
    assert binomial_tail(successes, total) == pytest.approx(stats.binom.sf(successes - 1, total, 0.5), rel=1e-10)


def test_cosine():
    assert cosine(np.array([3.0, 4.0]), np.array([4.0, 3.0])) == pytest.approx(0.96)
