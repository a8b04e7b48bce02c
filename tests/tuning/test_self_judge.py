import numpy as np
import pytest
import torch

from alignez_bake.errors import BadInputError
from alignez_bake.language_model.sampling import Continuation, derived_seed
from alignez_bake.lowering.hooks import edited_by_hooks
from alignez_bake.prompts.objective import Objective
from alignez_bake.tuning.coupled_sampling import coupled_sample
from alignez_bake.tuning.self_judge import FlooredJudge, JudgePanel, SelfJudge, SelfScore, is_good, wanted_side
from tests.baking import plan_for
from tests.tiny_models import EOS_ID

HELPFUL = Objective("helpful", "helpful", "useless")
QUERIES = ["How?", "Why is it so?", "How?"]
ANSWERS = [Continuation([40, 41, 42], EOS_ID), Continuation([50], None), Continuation([], EOS_ID)]
SENTENCES = {
    "good": "You are a helpful assistant. Your answer should be helpful.",
    "bad": "Pretend you are a useless assistant. Your answer should be useless.",
}


def judge_of(lm, form, **settings):
    return SelfJudge(lm, HELPFUL, form, batch_size=2, **settings)


def log_probabilities(lm, form, query, side, tokens):
    context = form.context_ids(query, SENTENCES[side])
    with torch.no_grad():
        rows = torch.log_softmax(lm.model(torch.tensor([[*context, *tokens]])).logits[0].double(), dim=-1)
    return np.array([float(rows[len(context) - 1 + place, token]) for place, token in enumerate(tokens)])


def test_reward_and_coherence_are_those_of_the_personas(lm, form):
    found = judge_of(lm, form).scores(QUERIES, ANSWERS)
    for query, tokens, score in zip(QUERIES, ([40, 41, 42, EOS_ID], [50]), found, strict=False):
        good, bad = (log_probabilities(lm, form, query, side, tokens) for side in ("good", "bad"))
        assert score.reward == pytest.approx(good.sum() - bad.sum(), abs=1e-4)
        assert score.coherence == pytest.approx(good.mean(), rel=1e-5)
        assert abs(score.reward) > 1e-2
    assert found[2] is None


def test_where_less_is_wanted_the_personas_change_places(lm, form):
    found = judge_of(lm, form).scores(QUERIES, ANSWERS)
    opposite = judge_of(lm, form, wanted="bad").scores(QUERIES, ANSWERS)
    assert [score.reward for score in opposite[:2]] == pytest.approx([-score.reward for score in found[:2]])
    bad = log_probabilities(lm, form, QUERIES[1], "bad", [50])
    assert opposite[1].coherence == pytest.approx(bad.mean(), rel=1e-5)
    assert [wanted_side(weight) for weight in (0.3, -0.3)] == ["good", "bad"]


def test_it_judges_alike_after_the_model_was_edited(lm, form):
    judge = judge_of(lm, form)
    before = judge.scores(QUERIES, ANSWERS)
    with edited_by_hooks(lm.model, lm.architecture, plan_for(lm.folder.path)):
        assert judge.scores(QUERIES, ANSWERS) != before
    assert judge.scores(QUERIES, ANSWERS) == before


@pytest.mark.parametrize("wanted", ["good", "bad"])
def test_the_floor_is_the_fifth_percentile_of_what_the_persona_says(lm, form, wanted):
    settings = {"seed": 5, "max_new_tokens": 8}
    floor = judge_of(lm, form, wanted=wanted).floor(QUERIES[:2], answers=30, **settings)
    asked = [QUERIES[number % 2] for number in range(30)]
    answers = coupled_sample(
        lm,
        [form.context_ids(query, SENTENCES[wanted]) for query in asked],
        range(30),
        seed=derived_seed(5, "floor", "helpful", wanted),
        max_new_tokens=8,
        batch_size=30,
    )
    coherences = [
        log_probabilities(lm, form, query, wanted, [*ids, *([] if end is None else [end])]).mean()
        for query, (ids, end) in zip(asked, answers, strict=True)
        if ids
    ]
    assert floor == pytest.approx(np.percentile(coherences, 5), rel=1e-4)
    assert min(coherences) < floor < np.median(coherences) - 0.1


@pytest.mark.parametrize(
    ("score", "good"),
    [
        (SelfScore(0.1, -1.0), True),
        (SelfScore(0.1, -1.1), False),
        (SelfScore(0.0, -0.5), False),
        (SelfScore(-0.1, -0.5), False),
        (SelfScore(float("nan"), -0.5), False),
        (None, False),
    ],
)
def test_good_is_the_wanted_persona_and_coherent(score, good):
    assert is_good(score, -1.0) is good


class Planted:
    def __init__(self, *scores):
        self.scores = lambda queries, answers: list(scores)


def test_dials_weigh_the_verdicts():
    good, bad = SelfScore(1.0, -0.5), SelfScore(-1.0, -0.5)
    first, second = Planted(good, good, bad, None), Planted(good, bad, good, good)
    panel = JudgePanel((FlooredJudge(first, 3.0, -1.0), FlooredJudge(second, -1.0, -1.0)))
    assert panel.values(["q"] * 4, [ANSWERS[0]] * 4) == [1.0, 0.75, 0.25, 0.25]
    strict = JudgePanel((FlooredJudge(first, 3.0, -0.4), FlooredJudge(second, -1.0, -1.0)))
    assert strict.values(["q"] * 4, [ANSWERS[0]] * 4) == [0.25, 0.0, 0.25, 0.25]


def test_queries_without_room(lm, form):
    judge = judge_of(lm, form)
    judge.check_fits(QUERIES, 20)
    with pytest.raises(BadInputError, match="256 positions"):
        judge.check_fits(QUERIES, 250)


def test_a_base_that_answers_nothing(lm, form, monkeypatch):
    monkeypatch.setattr(
        "alignez_bake.tuning.self_judge.coupled_sample", lambda *_, **__: [Continuation([], EOS_ID)] * 4
    )
    with pytest.raises(BadInputError, match="answers nothing when the good persona of objective 'helpful'"):
        judge_of(lm, form).floor(QUERIES, answers=4, seed=0, max_new_tokens=4)
