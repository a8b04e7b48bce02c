"""What every world promises: enough subjects, disjoint splits, and answers that its own judge tells apart."""

import re
from random import Random

import pytest

from examples.worlds import WORLDS
from examples.worlds.world import SIDES, SPLITS

EVERY_WORLD = pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)


@EVERY_WORLD
def test_splits_share_no_subject(world):
    subjects = [{query["subject"] for query in world.queries(split)} for split in SPLITS]
    assert not any(one & other for i, one in enumerate(subjects) for other in subjects[:i])
    assert sum(map(len, subjects)) >= 150


@EVERY_WORLD
def test_every_word_of_a_held_out_subject_is_seen_in_training(world):
    seen = {word for query in world.queries("training") for word in query["subject"].split()}
    held_out = {word for split in SPLITS for query in world.queries(split) for word in query["subject"].split()}
    assert held_out == seen


@EVERY_WORLD
@pytest.mark.parametrize("split", SPLITS)
def test_every_subject_is_asked_about_in_four_ways(world, split):
    queries = world.queries(split)
    subjects = {query["subject"] for query in queries}
    assert len({query["query"] for query in queries}) == len(queries) == 4 * len(subjects)
    for query in queries:
        assert set(query["subject"].split()) <= set(re.findall("[A-Za-z]+", query["query"]))


@EVERY_WORLD
@pytest.mark.parametrize("side", SIDES)
def test_the_judge_agrees_with_the_side_of_every_answer(world, side):
    rng = Random(0)
    for query in world.queries("evaluation"):
        for _ in range(8):
            answer = world.answer(query, side, rng)
            assert answer.startswith(" ")
            assert answer[1] != " "
            assert (world.judge(query, answer) > 0) == (side == "good"), answer


@EVERY_WORLD
@pytest.mark.parametrize("side", SIDES)
def test_there_are_four_forms_of_answer_on_each_side(world, side):
    rng = Random(0)
    query = world.queries("training")[0]
    assert len({world.answer(query, side, rng) for _ in range(200)}) >= 4


@EVERY_WORLD
def test_an_answer_does_not_pass_for_another_subject(world):
    rng = Random(0)
    queries = world.queries("evaluation")
    answer = world.answer(queries[0], "good", rng)
    others = [query for query in queries if query["subject"] != queries[0]["subject"]]
    assert max(world.judge(query, answer) for query in others) <= 0


@EVERY_WORLD
@pytest.mark.parametrize("side", SIDES)
def test_characteristics_fit_behind_should(world, side):
    rng = Random(0)
    for query in world.queries("training")[:40]:
        characteristic = world.characteristic(query, side, rng)
        assert characteristic == characteristic.strip().rstrip(".")
        assert characteristic[0].islower()


def test_no_word_tells_kind_and_rude_letters_apart():
    letters = WORLDS["letters"]
    query = letters.queries("training")[0]
    words = {side: set() for side in SIDES}
    for side in SIDES:
        rng = Random(0)
        for _ in range(200):
            words[side].update(letters.answer(query, side, rng).split())
    assert words["good"] == words["bad"]
