from __future__ import annotations

import dataclasses

import pytest

from alignez_bake.capture.sequences import TokenisedPair
from alignez_bake.capture.spec import Pass
from alignez_bake.errors import BadInputError

PAIR = TokenisedPair(
    prompts={"plain": (0, 7, 8), "good": (0, 5, 7, 8), "bad": (0, 6, 6, 7, 8)},
    shared=2,
    answers={"good": (9, 10, 11), "bad": (12,)},
    name="a query",
)


def test_sequences_are_prompt_and_answer() -> None:
    assert PAIR.sequence(Pass("bad", "good")) == (0, 6, 6, 7, 8, 9, 10, 11)
    assert PAIR.sequence(Pass("plain", "bad")) == (0, 7, 8, 12)


def test_tokens_are_ends_of_the_sequence() -> None:
    tails = {tokens: PAIR.tail("good", tokens) for tokens in ("last", "answer", "answer_mean", "shared")}
    assert tails == {"last": 1, "answer": 3, "answer_mean": 3, "shared": 5}
    assert PAIR.tail("bad", "shared") == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answers": {"good": (), "bad": (1,)}}, "good answer is empty"),
        ({"answers": {"good": (1,), "bad": ()}}, "bad answer is empty"),
        ({"shared": 0}, "cannot be shared"),
        ({"shared": 4}, "cannot be shared"),
        ({"shared": 3}, "other tokens after the good persona"),
        ({"prompts": {**PAIR.prompts, "bad": (0, 6, 8, 8)}}, "other tokens after the bad persona"),
    ],
    ids=["no good answer", "no bad answer", "nothing shared", "too much shared", "BOS shared", "another prompt"],
)
def test_what_recording_relies_on_is_checked(change: dict, message: str) -> None:
    with pytest.raises(BadInputError, match=f"'a query'.*{message}"):
        dataclasses.replace(PAIR, **change)
