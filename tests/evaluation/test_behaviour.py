import pytest

from alignez_bake.errors import BadInputError
from alignez_bake.evaluation import behaviour
from alignez_bake.evaluation.behaviour import good_rate, judged_answers

QUERIES = [{"query": f"How {number}?", "number": number} for number in range(5)]
SETTINGS = {"seed": 0, "batch_size": 4, "max_new_tokens": 6}


def long_enough(query, answer):
    return (len(answer) - 5) / 1000


def test_answers_are_the_models_own_without_persona(lm, form, monkeypatch):
    asked = []

    def answer(_lm, contexts, **settings):
        asked.extend(contexts)
        return [form.answer_ids(f" number {index}") for index in range(len(contexts))]

    monkeypatch.setattr(behaviour, "sample", answer)
    seen = []

    def judge(query, answer):
        seen.append((query["number"], answer))
        return 1.0 if query["number"] == 3 else 0.0

    judged = judged_answers(lm, QUERIES, judge, form, samples=2, **SETTINGS)
    assert asked == [form.context_ids(query["query"], None) for query in QUERIES for _ in range(2)]
    assert seen == [(index // 2, f" number {index}") for index in range(10)]
    assert judged.answers[3] == (" number 6", " number 7")
    assert judged.scores == ((0.0, 0.0),) * 3 + ((1.0, 1.0), (0.0, 0.0))
    assert (judged.good_rate.successes, judged.good_rate.total) == (2, 10)


def test_a_score_of_zero_is_not_good(lm, form):
    assert good_rate(lm, QUERIES, lambda *_: 0.0, form, **SETTINGS).value == 0
    assert good_rate(lm, QUERIES, lambda *_: 1e-9, form, **SETTINGS).value == 1


def test_the_same_seed_gives_the_same_rate(lm, form):
    first = judged_answers(lm, QUERIES, long_enough, form, samples=3, **SETTINGS)
    assert judged_answers(lm, QUERIES, long_enough, form, samples=3, **SETTINGS) == first
    assert judged_answers(lm, QUERIES, long_enough, form, samples=3, **{**SETTINGS, "seed": 1}) != first
    # Several samples of one query are not the same answer.
    assert all(len(set(answers)) > 1 for answers in first.answers)


@pytest.mark.parametrize(("queries", "samples"), [([], 1), (QUERIES, 0)])
def test_nothing_to_judge(lm, form, queries, samples):
    with pytest.raises(BadInputError, match="nothing to judge"):
        good_rate(lm, queries, long_enough, form, samples=samples, **SETTINGS)


def test_a_persona_can_be_asked_for(lm, form, monkeypatch):
    asked = []

    def answer(_lm, contexts, **settings):
        asked.extend(contexts)
        return [[] for _ in contexts]

    monkeypatch.setattr(behaviour, "sample", answer)
    good_rate(lm, QUERIES, long_enough, form, sentence="You are terse.", **SETTINGS)
    assert asked == [form.context_ids(query["query"], "You are terse.") for query in QUERIES]
