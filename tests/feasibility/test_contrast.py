import numpy as np
import pytest
import torch

from alignez_bake.errors import BadInputError
from alignez_bake.language_model.sampling import Continuation
from alignez_bake.tuning.self_judge import SelfJudge

QUERIES = ["How?", "Why is it so?", "How?"]
ANSWERS = [[40, 41, 42, 43], [50], [60, 61]]


def naive(contrast, query, side, tokens):
    """Next-token distributions [tokens, vocabulary] along an answer, one sequence at a time, in float64."""
    context = contrast.context(query, side)
    with torch.no_grad():
        logits = contrast.lm.model(torch.tensor([[*context, *tokens]])).logits[0].double()
    return torch.softmax(logits, dim=-1).numpy()[len(context) - 1 : len(context) - 1 + len(tokens)]


def test_readings_are_those_of_one_sequence_at_a_time(tiny_contrast):
    found = tiny_contrast.read(QUERIES, ANSWERS, plain=True)
    for query, tokens, reading in zip(QUERIES, ANSWERS, found, strict=True):
        good, bad, plain = (naive(tiny_contrast, query, side, tokens) for side in ("good", "bad", None))
        of_answer = [np.log(rows[np.arange(len(tokens)), tokens]).sum() for rows in (good, bad, plain)]
        assert reading.reward == pytest.approx(of_answer[0] - of_answer[1], abs=1e-4)
        assert reading.lead == pytest.approx(of_answer[0] - of_answer[2], abs=1e-4)
        middle = (good + bad) / 2
        divergence = ((good * np.log(good / middle)).sum(1) + (bad * np.log(bad / middle)).sum(1)) / 2
        assert reading.divergence == pytest.approx(divergence.mean(), rel=1e-3)
        assert reading.variation == pytest.approx((abs(good - bad).sum(1) / 2).mean(), rel=1e-4)
        assert abs(reading.reward) > 1e-2
        assert abs(reading.lead - reading.reward) > 1e-2
        assert 0 < reading.divergence < reading.variation < 1


def test_the_reward_is_the_self_judges(tiny_contrast):
    judge = SelfJudge(tiny_contrast.lm, tiny_contrast.objective, tiny_contrast.form, batch_size=2)
    scores = judge.scores(QUERIES, [Continuation(ids, None) for ids in ANSWERS])
    found = tiny_contrast.read(QUERIES, ANSWERS, plain=False)
    assert [reading.reward for reading in found] == pytest.approx([score.reward for score in scores], abs=1e-4)
    assert {reading.lead for reading in found} == {None}


def test_where_less_is_wanted_the_personas_change_places(tiny_contrast):
    good = tiny_contrast.read(QUERIES, ANSWERS, plain=False)
    bad = tiny_contrast._replace(wanted="bad").read(QUERIES, ANSWERS, plain=False)
    assert [reading.reward for reading in bad] == pytest.approx([-reading.reward for reading in good], abs=1e-5)
    assert (tiny_contrast.other, tiny_contrast._replace(wanted="bad").other) == ("bad", "good")


def test_batches_cut_for_memory_read_the_same(tiny_contrast, monkeypatch):
    whole = tiny_contrast.read(QUERIES, ANSWERS, plain=True)
    monkeypatch.setattr("alignez_bake.feasibility.contrast.logits_bytes", lambda _: 1)
    apart = tiny_contrast.read(QUERIES, ANSWERS, plain=True)
    for one, other in zip(whole, apart, strict=True):
        assert other == pytest.approx(one, abs=1e-4)


def test_predictions_that_are_not_finite(tiny_contrast, monkeypatch):
    def broken(lm, contexts, answers, *, batch_size):
        from alignez_bake.language_model.log_probabilities import AnswerLogits

        for place, answer in enumerate(answers):
            yield AnswerLogits(place, torch.full((len(answer), lm.vocabulary_size), torch.nan))

    monkeypatch.setattr("alignez_bake.feasibility.contrast.iter_answer_logits", broken)
    with pytest.raises(BadInputError, match="predictions are not finite"):
        tiny_contrast.read(QUERIES, ANSWERS, plain=False)
