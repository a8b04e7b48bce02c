"""An even sample: every pair gives its share, and the batches do not matter."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignez_bake.capture.token_choice import TokenChoice

TAILS = st.lists(st.integers(1, 40), min_size=1, max_size=12)


def _kept(choice: TokenChoice, tails: list[int], batches: list[list[int]]) -> dict[int, tuple[int, int]]:
    """(pair, token) by place."""
    found = {}
    for batch in batches:
        everything = [(pair, token) for pair in batch for token in range(tails[pair])]
        rows, places = choice.of_batch(batch)
        for place, row in zip(places, range(len(everything)) if rows is None else rows, strict=True):
            found[int(place)] = everything[row]
    return found


@settings(deadline=None)
@given(TAILS, st.integers(1, 300), st.integers(0, 2**32), st.randoms())
def test_each_place_is_filled_once_in_the_order_of_the_pairs_whatever_the_batches(tails, most, seed, random) -> None:
    choice = TokenChoice(tails, most, seed)
    assert choice.read == sum(tails)
    assert choice.count == min(most, sum(tails))
    order = list(range(len(tails)))
    random.shuffle(order)
    shuffled = [order[first : first + 3] for first in range(0, len(order), 3)]
    found = _kept(choice, tails, shuffled)
    assert sorted(found) == list(range(choice.count))
    in_order = [found[place] for place in range(choice.count)]
    assert in_order == sorted(set(in_order))
    assert found == _kept(choice, tails, [[pair] for pair in range(len(tails))])


@settings(deadline=None)
@given(TAILS, st.integers(1, 100), st.integers(0, 2**32))
def test_every_pair_gives_its_share(tails, most, seed) -> None:
    choice = TokenChoice(tails, most, seed)
    for pair, tail in enumerate(tails):
        assert abs(len(choice.of_batch([pair]).places) - tail * choice.count / choice.read) < 2


def test_the_seed_says_which_and_all_tokens_need_none() -> None:
    tails = [30, 50, 20]
    one, same, other = (TokenChoice(tails, 10, seed).of_batch([0, 1, 2]).rows for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)
    assert TokenChoice(tails, None, 1).of_batch([0, 1, 2]).rows is None
    assert TokenChoice(tails, 100, 1).of_batch([0, 1, 2]).rows is None


def test_every_token_is_as_likely() -> None:
    counts = np.zeros(12)
    for seed in range(2000):
        counts[TokenChoice([5, 7], 3, seed).of_batch([0, 1]).rows] += 1
    assert counts == pytest.approx(np.full(12, 500), abs=90)
