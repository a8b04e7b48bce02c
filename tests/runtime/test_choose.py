"""Greedy choice and sampling."""

from __future__ import annotations

import numpy as np
import pytest

from alignez_bake.errors import BadInputError
from alignez_bake.runtime.choose import Sampling, _drawn, _nucleus, chooser

LOGITS = np.log(np.array([0.1, 0.4, 0.05, 0.25, 0.2]))


def counts(sampling: Sampling, draws: int = 20_000) -> np.ndarray:
    tokens = chooser(sampling, draws)(np.tile(LOGITS, (draws, 1)))
    return np.bincount(tokens, minlength=len(LOGITS)) / draws


def test_greedy_takes_the_likeliest_and_of_equal_ones_the_first():
    logits = np.array([[0.0, 2.0, 1.0], [3.0, 1.0, 3.0]], dtype=np.float16)
    assert chooser(None, 2)(logits).tolist() == [1, 0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_samples_follow_the_distribution(temperature):
    expected = np.exp(LOGITS / temperature)
    expected /= expected.sum()
    # Five standard deviations of a share at 20 000 draws are at most 0.018.
    np.testing.assert_allclose(counts(Sampling(temperature=temperature, seed=1)), expected, atol=0.018)


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.3, [1]), (0.41, [1, 3]), (0.8, [1, 3, 4]), (0.9, [0, 1, 3, 4]), (1.0, [0, 1, 2, 3, 4])]
)
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p, kept):
    share = counts(Sampling(top_p=top_p, seed=2))
    assert np.flatnonzero(share).tolist() == kept
    expected = np.exp(LOGITS[kept])
    np.testing.assert_allclose(share[kept], expected / expected.sum(), atol=0.018)


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"top_k": 1}, [1]),
        ({"top_k": 3}, [1, 3, 4]),
        ({"top_k": 5}, [0, 1, 2, 3, 4]),
        ({"top_k": 99}, [0, 1, 2, 3, 4]),
        ({"top_k": 3, "top_p": 0.7}, [1, 3]),  # 0.65 of 0.85 that are left; of all 1.0 it would be three
    ],
)
def test_top_k_keeps_so_many_of_the_likeliest(settings, kept):
    share = counts(Sampling(**settings, seed=2))
    assert np.flatnonzero(share).tolist() == kept
    expected = np.exp(LOGITS[kept])
    np.testing.assert_allclose(share[kept], expected / expected.sum(), atol=0.018)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_of_equal_tokens_at_the_edge_of_top_k_the_first_stay(count):
    tokens = chooser(Sampling(top_k=count + 1, seed=0), 2000)(np.tile([0.0, 0.0, 5.0, 0.0, -1.0], (2000, 1)))
    assert set(tokens.tolist()) <= {2, *[0, 1, 3][:count]}
    several = chooser(Sampling(top_k=count, seed=0), 2000)(np.zeros((2000, 4)))
    assert set(several.tolist()) == set(range(count))


def test_the_seed_alone_decides():
    logits = np.random.default_rng(0).normal(size=(8, 50))
    first, second = (chooser(Sampling(seed=3), 8) for _ in range(2))
    runs = [[choose(logits).tolist() for _ in range(5)] for choose in (first, second)]
    assert runs[0] == runs[1]
    assert len({tuple(step) for step in runs[0]}) > 1
    other = chooser(Sampling(seed=4), 8)
    assert [other(logits).tolist() for _ in range(5)] != runs[0]


def test_a_row_draws_the_same_whatever_stands_beside_it():
    logits = np.random.default_rng(0).normal(size=(3, 50))
    alone, beside = chooser(Sampling(seed=3), 1), chooser(Sampling(seed=3), 3)
    for _ in range(20):
        assert alone(logits[:1])[0] == beside(logits)[0]


def test_ruled_out_tokens_are_never_drawn():
    logits = np.array([-np.inf, 0.0, -np.inf, 0.0])
    tokens = chooser(Sampling(seed=0), 2000)(np.tile(logits, (2000, 1)))
    assert set(tokens.tolist()) == {1, 3}


def test_of_equal_tokens_at_the_edge_the_first_stays():
    tokens = chooser(Sampling(top_p=0.5, seed=0), 2000)(np.zeros((2000, 4)))
    assert set(tokens.tolist()) == {0, 1}


@pytest.mark.parametrize("spread", [0.1, 1.0, 10.0])
def test_the_nucleus_is_that_of_a_whole_sort(spread):
    """Tokens that are not sorted are those that could not be in it."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        weights = np.exp(rng.normal(size=200) * spread)
        top_p = rng.uniform(0.01, 0.999)
        order = np.argsort(-weights, kind="stable")
        size = next(n for n in range(1, 201) if weights[order[:n]].sum() >= top_p * weights.sum())
        assert _nucleus(weights, top_p).tolist() == order[:size].tolist()


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_a_draw_at_the_very_end_is_a_token_that_can_be_drawn(top_p):
    """The largest number below 1 times the sum can be the sum itself."""
    logits = np.array([0.0, 1.0, 0.5, -np.inf, -np.inf])
    assert _drawn(logits, Sampling(top_p=top_p), 1.0) == 2
    assert _drawn(logits, Sampling(top_p=top_p), 0.0) == 0


@pytest.mark.parametrize(
    "settings",
    [{"temperature": 0.0}, {"temperature": float("nan")}, {"temperature": float("inf")}, {"top_p": 0.0},
     {"top_p": 1.5}, {"top_p": float("nan")}, {"top_k": 0}, {"seed": -1}],
)  # fmt: skip
def test_settings_out_of_bounds_are_refused(settings):
    with pytest.raises(BadInputError, match=next(iter(settings))):
        Sampling(**settings)
