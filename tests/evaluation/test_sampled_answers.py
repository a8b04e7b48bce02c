import pytest

from alignez_bake.errors import BadInputError
from alignez_bake.evaluation.sampled_answers import check_sampling, sampled_answers
from alignez_bake.language_model.answering import TorchAnswering
from alignez_bake.language_model.loading import load_language_model
from alignez_bake.model_folder import open_model_folder
from tests.baking import replace_tensors

QUERIES = [{"query": f"How {number}?" + " Why?" * number} for number in range(6)]
SETTINGS = {"samples": 2, "max_new_tokens": 8, "temperature": 1.0, "batch_size": 5, "seed": 0}


def answered(lm, form, **changes):
    return sampled_answers(TorchAnswering(lm), QUERIES, form, **{**SETTINGS, **changes})


def test_each_query_has_its_samples_whatever_the_batches(lm, form):
    found = answered(lm, form)
    assert [len(answers) for answers in found] == [2] * 6
    assert len({answer for answers in found for answer in answers}) == 12
    assert answered(lm, form, batch_size=3) == found
    assert answered(lm, form, seed=1) != found


def test_the_first_sample_of_each_query_does_not_move_when_one_runs_alone(lm, form):
    alone = sampled_answers(TorchAnswering(lm), QUERIES[:1], form, **SETTINGS)
    assert alone[0] == answered(lm, form)[0]


def test_models_that_predict_almost_alike_answer_alike(lm, form, save_tiny, tmp_path):
    """Without common noise two draws from one distribution over 320 tokens are hardly ever the same."""
    folder = save_tiny("llama", tmp_path / "near")
    replace_tensors(folder, lambda name, values: values * 1.0002 if name == "lm_head.weight" else None)
    near = load_language_model(open_model_folder(folder))
    ours, theirs = answered(lm, form), answered(near, form)
    same = sum(one == other for pair in zip(ours, theirs, strict=True) for one, other in zip(*pair, strict=True))
    assert same >= 10


def test_answers_that_end_do_not_change_the_others(lm, form, monkeypatch):
    """What ends leaves the batch, and the noise of those that go on must stay theirs."""

    class Ids:
        context_ids = staticmethod(form.context_ids)

        @staticmethod
        def answer_text(ids):
            return "".join(chr(1000 + token) for token in ids)

    whole = answered(lm, Ids)
    ends = set(range(40))  # the own EOS among them
    monkeypatch.setitem(lm.__dict__, "eos_ids", tuple(ends))
    cut = tuple(
        tuple(
            text[: min([place for place, mark in enumerate(text) if ord(mark) - 1000 in ends], default=len(text))]
            for text in row
        )
        for row in whole
    )
    assert answered(lm, Ids) == cut
    assert len({len(text) for row in cut for text in row}) > 3


def test_temperature(lm, form):
    greedy = answered(lm, form, temperature=0.0)
    assert all(one == other for one, other in greedy)
    assert answered(lm, form, temperature=1e-4) == greedy
    assert answered(lm, form, temperature=3.0) != answered(lm, form)


def test_other_runtimes_draw_their_own(form):
    class Runtime:
        def continued(self, contexts, **settings):
            self.asked = (contexts, settings)
            return [form.answer_ids(f" {number}") for number in range(len(contexts))]

    runtime = Runtime()
    found = sampled_answers(runtime, QUERIES[:2], form, **SETTINGS)
    assert found == ((" 0", " 1"), (" 2", " 3"))
    contexts, settings = runtime.asked
    assert contexts == [form.context_ids(query["query"], None) for query in QUERIES[:2] for _ in range(2)]
    assert settings == {
        "max_new_tokens": 8,
        "batch_size": 5,
        "seed": 0,
        "temperature": 1.0,
        "progress": settings["progress"],
    }


def test_a_query_that_is_too_long(lm, form):
    with pytest.raises(BadInputError, match="is too long for"):
        answered(lm, form, max_new_tokens=10_000)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": 0}, "--samples 0 must be 1 or more"),
        ({"max_new_tokens": 0}, "--max-new-tokens 0 must be 1 or more"),
        ({"batch_size": 0}, "--batch-size 0 must be 1 or more"),
        ({"seed": -1}, "--seed -1 must be 0 or more"),
        ({"temperature": -0.1}, "--temperature -0.1 must be"),
        ({"temperature": float("nan")}, "--temperature nan must be"),
        ({"temperature": float("inf")}, "--temperature inf must be"),
    ],
)
def test_bounds(changes, message):
    check_sampling(**SETTINGS)
    with pytest.raises(BadInputError, match=message):
        check_sampling(**{**SETTINGS, **changes})
