"""Answers of planted distributions: what is counted must be their total variations."""

import numpy as np
import pytest

from alignez_bake.feasibility.contrast import AnswerReading
from alignez_bake.feasibility.obedience import (
    SHARPENING,
    Readings,
    WrittenAnswers,
    answers_of_personas,
    obedience_of,
    read_written,
    upper_bound,
)
from alignez_bake.tuning.offered import LADDER

WANTED = np.array([0.5, 0.3, 0.1, 0.1])
OTHER = np.array([0.1, 0.1, 0.5, 0.3])
PLAIN = np.array([0.3, 0.2, 0.3, 0.2])


def variation(one, other):
    return float(abs(one - other).sum() / 2)


def reading(answer, wanted, other, plain):
    return AnswerReading(
        float(np.log(wanted[answer] / other[answer])), float(np.log(wanted[answer] / plain[answer])), 0.02, 0.1
    )


def planted(number, queries, wanted=WANTED, other=OTHER, plain=PLAIN, written_for="personas", seed=0):
    rng = np.random.default_rng(seed)
    readings = Readings(
        *(
            [reading(answer, wanted, other, plain) for answer in rng.choice(len(shares), size=number, p=shares)]
            for shares in (wanted, other, plain)
        )
    )
    nothing = ((False,) * number,) * 3
    ids = ([1],) * number
    return WrittenAnswers(tuple(f"q{k}" for k in range(queries)), ids, ids, ids, nothing, written_for), readings


def test_contrast_and_reach_are_total_variations():
    found = obedience_of(*planted(1200, 1200), seed=0)
    assert abs(found.contrast.value - variation(WANTED, OTHER)) < 3 * found.contrast.standard_error < 0.06
    assert found.room.value == pytest.approx(0.8 - 0.5, abs=0.06)
    assert found.reach.value == pytest.approx(variation(WANTED, PLAIN), abs=0.03)
    assert variation(WANTED, PLAIN) < found.reach.high < 0.4
    assert (found.wanted.value, found.other.value) == pytest.approx((0.8, 0.8), abs=0.04)
    assert found.plain.value == pytest.approx(0.5, abs=0.05)
    assert found.reward[0] > 0.5
    assert found.reward[1] < -0.5


def test_the_gain_is_that_of_the_two_kinds_of_answers_sharpened():
    # Of two answers alone, (1) of contrastive decoding by hand.
    s, wanted, other, plain = SHARPENING, np.array([0.6, 0.4]), np.array([0.45, 0.55]), np.array([0.5, 0.5])
    aim = wanted**s * (wanted / other) ** (s - 1)
    expected = aim[0] / aim.sum() - plain[0]
    assert expected > wanted[0] - plain[0] + 0.1
    many = obedience_of(*planted(4000, 4000, wanted, other, plain), seed=0).gain
    assert abs(many.value - expected) < 3 * many.standard_error < 0.06
    found = [obedience_of(*planted(100, 100, wanted, other, plain, seed=seed), seed=0).gain for seed in range(60)]
    values = np.array([gain.value for gain in found])
    assert np.mean([gain.standard_error for gain in found]) == pytest.approx(values.std(), rel=0.2)
    assert 0.88 <= np.mean([gain.low <= expected <= gain.high for gain in found]) <= 0.98


def test_rates_of_nothing_and_all_have_a_gain():
    certain = np.array([1 - 1e-9, 1e-9])
    found = obedience_of(*planted(50, 50, certain, certain[::-1], np.array([0.5, 0.5])), seed=0)
    assert found.gain.value == pytest.approx(1 - found.plain.value, abs=1e-3)
    assert np.isfinite([found.gain.low, found.gain.high]).all()


def test_the_gain_is_of_the_strength_that_the_choice_tries_first():
    (first,) = LADDER[0].first
    assert (LADDER[0].method, first) == ("contrastive_decoding", SHARPENING)


def test_the_reach_of_a_persona_that_says_nothing_is_small_for_sure():
    nearly = PLAIN + np.array([0.01, -0.01, 0.0, 0.0])
    found = obedience_of(*planted(100, 100, wanted=nearly, other=PLAIN), seed=0)
    assert found.reach.value < 0.03
    assert found.reach.high < 0.2
    assert found.room.low <= 0 <= found.room.high


def test_answers_to_few_queries_leave_intervals_wide():
    many, few = (obedience_of(*planted(96, queries), seed=0) for queries in (96, 4))
    assert (few.queries, many.queries) == (4, 96)
    assert few.reach.high == 1.0 > many.reach.high
    assert few.contrast.value == many.contrast.value


def test_empty_answers_count_for_nobody():
    written, readings = planted(200, 200)
    all_empty = written._replace(empty=((True,) * 200,) * 3)
    found = obedience_of(all_empty, readings, seed=0)
    assert (found.wanted.successes, found.other.successes, found.plain.successes, found.empty) == (0, 0, 0, 600)
    assert obedience_of(written, readings, seed=0).wanted.successes > 100


def test_answers_of_pairs_have_no_reach():
    assert obedience_of(*planted(50, 50, written_for="pairs"), seed=0).reach is None


def test_the_upper_bound_holds_for_rare_values():
    zeros = upper_bound(np.zeros(100))
    assert zeros.value == 0
    assert zeros.high == pytest.approx(7 * np.log(40) / (3 * 99))
    rng = np.random.default_rng(1)
    missed = sum(upper_bound((rng.random(60) < 0.03).astype(float)).high < 0.03 for _ in range(400))
    assert missed <= 0.05 * 400
    assert upper_bound(np.ones(10)).high == 1


def test_sampled_answers_share_their_random_numbers(tiny_contrast):
    queries = ["How?", "Why?", "When?"]
    written = answers_of_personas(tiny_contrast, queries, answers=5, seed=3, most_tokens=6)
    again = answers_of_personas(tiny_contrast, queries, answers=5, seed=3, most_tokens=6)
    other = answers_of_personas(tiny_contrast, queries, answers=5, seed=4, most_tokens=6)
    assert written == again
    assert written.wanted != other.wanted
    assert written.wanted != written.other
    assert all(1 <= len(ids) <= 7 for side in written[1:4] for ids in side)
    found = obedience_of(written, read_written(tiny_contrast, written), seed=3)
    assert found.to_json()["queries"] == 3
    # Of its own answers a base is never wrong about more than half.
    assert found.contrast.value >= 0
