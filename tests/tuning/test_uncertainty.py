import numpy as np
import pytest

from alignez_bake.tuning.uncertainty import estimate, standard_error

VALUES = (np.random.default_rng(0).random(120) < 0.4).astype(np.float64)
LENGTHS = np.random.default_rng(1).random(120)


def test_one_answer_a_query_is_the_usual_standard_error():
    assert standard_error(VALUES, 120) == pytest.approx(VALUES.std(ddof=1) / np.sqrt(120))
    assert standard_error(VALUES, 500) == standard_error(VALUES, 120)


def test_answers_that_repeat_a_querys_add_nothing():
    assert standard_error(np.tile(VALUES, 4), 120) == pytest.approx(standard_error(VALUES, 120))
    few = VALUES[:100]
    assert standard_error(np.concatenate([few, few[:50]]), 100) > 0.9 * standard_error(few, 100)


def test_the_interval_is_what_the_standard_error_says():
    found = estimate(VALUES, 120, seed=1)
    assert found.value == VALUES.mean()
    assert found.standard_error == standard_error(VALUES, 120)
    assert (found.low, found.high) == pytest.approx(
        (found.value - 1.96 * found.standard_error, found.value + 1.96 * found.standard_error), abs=0.012
    )
    assert estimate(VALUES, 120, seed=1) == found
    assert estimate(VALUES * LENGTHS, 120, seed=2) != estimate(VALUES * LENGTHS, 120, seed=1)


def test_the_interval_is_clustered():
    alone, repeated = estimate(VALUES, 120, seed=1), estimate(np.tile(VALUES, 4), 120, seed=1)
    assert repeated.high - repeated.low == pytest.approx(alone.high - alone.low)


def test_answers_that_are_all_alike():
    found = estimate(np.ones(40), 10, seed=0)
    assert (found.value, found.standard_error, found.low, found.high) == (1.0, 0.0, 1.0, 1.0)


def test_intervals_of_many_are_wider():
    """Bonferroni: for 20 the ends are where a normal tail is 0.125 %, at 3.02 standard errors."""
    found = estimate(VALUES, 120, seed=1, among=20)
    assert (found.low, found.high) == pytest.approx(
        (found.value - 3.02 * found.standard_error, found.value + 3.02 * found.standard_error), abs=0.02
    )
    assert found.standard_error == estimate(VALUES, 120, seed=1).standard_error
