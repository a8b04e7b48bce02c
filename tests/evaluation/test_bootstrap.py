import numpy as np
import pytest

from alignez_bake.evaluation.bootstrap import QueryBootstrap
from alignez_bake.evaluation.rates import rate

QUERIES = 400


@pytest.fixture(scope="module")
def bootstrap():
    return QueryBootstrap(QUERIES, seed=0)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def test_the_interval_of_a_mean_is_that_of_theory(bootstrap):
    values = 3 + normal(0, QUERIES, 1)
    found = bootstrap.mean(values)
    half = 1.96 * values.std() / np.sqrt(QUERIES)
    assert found.value == values.mean()
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), abs=0.15 * half)


def test_copies_of_an_answer_say_nothing_new(bootstrap):
    """Drawing answers instead of queries would make the interval of nine copies a third as wide."""
    values = normal(0, QUERIES, 1)
    once, nine_times = bootstrap.mean(values), bootstrap.mean(np.repeat(values, 9, axis=1))
    assert (nine_times.low, nine_times.high) == pytest.approx((once.low, once.high), abs=1e-12)


def test_independent_answers_say_more(bootstrap):
    values = normal(0, QUERIES, 9)
    assert width(bootstrap.mean(values)) == pytest.approx(width(bootstrap.mean(values[:, :1])) / 3, rel=0.2)


def width(estimate):
    return estimate.high - estimate.low


def test_what_is_missing_counts_nowhere(bootstrap):
    values = normal(0, QUERIES, 2)
    values[:, 1] = np.nan
    assert bootstrap.mean(values) == bootstrap.mean(values[:, :1])
    values[: QUERIES // 2] = np.nan
    assert bootstrap.mean(values).value == pytest.approx(values[QUERIES // 2 :, 0].mean())
    assert bootstrap.mean(np.full((QUERIES, 2), np.nan)) is None


def test_a_share_of_single_answers_is_wilsons(bootstrap):
    true = np.arange(QUERIES)[:, None] < 100
    found, expected = bootstrap.share(true), rate(100, QUERIES)
    assert (found.value, found.low, found.high) == (expected.value, expected.low, expected.high)


@pytest.mark.parametrize("value", [True, False])
def test_answers_that_are_all_alike_are_not_certain(bootstrap, value):
    found, expected = bootstrap.share(np.full((QUERIES, 3), value)), rate(QUERIES * value, QUERIES)
    assert (found.value, found.low, found.high) == (float(value), expected.low, expected.high)
    assert width(found) > 0


def test_a_share_of_several_answers_is_clustered(bootstrap):
    true = np.repeat(np.arange(QUERIES)[:, None] < 100, 16, axis=1)
    found = bootstrap.share(true)
    assert found.value == 0.25
    expected = rate(100, QUERIES)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.01)


def test_the_same_seed_gives_the_same_interval():
    values = normal(0, 50, 2)
    assert (
        QueryBootstrap(50, 1).mean(values) == QueryBootstrap(50, 1).mean(values) != QueryBootstrap(50, 2).mean(values)
    )


def test_blocks_of_draws_are_all_draws(monkeypatch):
    from alignez_bake.evaluation import query_draws as module

    values = normal(0, 50, 2)
    whole = QueryBootstrap(50, 1).mean(values)
    monkeypatch.setattr(module, "_BLOCK", 50 * 300)
    assert QueryBootstrap(50, 1).mean(values) == whole


def gap_values():
    """Base 0.4, ours 0.7, tuned 0.9 on average; each query has its own ease, the same for all models."""
    ease = normal(1, QUERIES, 1)
    return 0.4 + ease, 0.7 + ease, 0.9 + ease


def test_the_gap_is_paired(bootstrap):
    """Ease is far larger than the gap: only because all models see the same draws does it cancel."""
    found = bootstrap.gap(*gap_values())
    assert found.value == pytest.approx(60)
    assert (found.low, found.high) == pytest.approx((60, 60))
    assert found.reason == ""


def test_the_interval_of_the_gap(bootstrap):
    base, ours, tuned = gap_values()
    ours = ours + 0.5 * normal(2, QUERIES, 1)
    ours -= ours.mean() - base.mean() - 0.3
    found = bootstrap.gap(base, ours, tuned)
    half = 100 * 1.96 * (ours - base).std() / np.sqrt(QUERIES) / 0.5
    assert found.value == pytest.approx(60)
    assert (found.low, found.high) == pytest.approx((60 - half, 60 + half), abs=0.15 * half)


def test_no_gap_no_figure(bootstrap):
    noise = normal(3, QUERIES, 1)
    found = bootstrap.gap(np.zeros((QUERIES, 1)), noise, noise - noise.mean() + 0.01)
    assert (found.value, found.low, found.high) == (None, None, None)
    assert "includes 0" in found.reason
    assert bootstrap.gap(noise, noise, noise).value is None
    assert "were judged" in bootstrap.gap(noise, np.full_like(noise, np.nan), noise + 1).reason


def test_units():
    found = QueryBootstrap(50, 0).mean(normal(0, 50, 1))
    assert found.times(100).as_json() == {
        "value": 100 * found.value,
        "low": 100 * found.low,
        "high": 100 * found.high,
    }
