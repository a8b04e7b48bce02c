from contextlib import contextmanager

import pytest
import torch

from alignez_bake.errors import BadInputError
from alignez_bake.evaluation.drift import answer_loss, kl_on_texts
from tests.tiny_models import BOS_ID, EOS_ID

DOCUMENTS = [{"query": "How?", "answer": " So."}, {"query": "Why is it so?", "answer": " Because of the lemon."}]
TEXTS = ["A bell rings in the morning.", "Rain.", "", "The river is wide, and nobody swims."]


def log_probabilities(lm, ids):
    with torch.no_grad():
        return torch.log_softmax(lm.model(torch.tensor([ids])).logits[0].double(), dim=-1)


def test_loss_is_the_mean_over_answer_tokens_and_eos(lm, form):
    losses = []
    for document in DOCUMENTS:
        context = form.context_ids(document["query"], None)
        answer = [*form.answer_ids(document["answer"]), EOS_ID]
        rows = log_probabilities(lm, context + answer)
        losses += [-rows[len(context) - 1 + place, token] for place, token in enumerate(answer)]
    assert answer_loss(lm, DOCUMENTS, form, batch_size=2) == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)


def test_kl_is_the_mean_over_tokens(lm, other_lm, form):
    terms = []
    for text in TEXTS:
        ids = form.text_ids(text)
        assert ids[0] == BOS_ID
        p, q = (log_probabilities(model, ids)[:-1] for model in (lm, other_lm))
        terms += (p.exp() * (p - q)).sum(dim=-1).tolist()
    expected = sum(terms) / len(terms)
    assert expected > 0.1
    assert kl_on_texts(lm, other_lm, TEXTS, form, batch_size=2) == pytest.approx(expected, rel=1e-5)
    assert kl_on_texts(other_lm, lm, TEXTS, form, batch_size=2) != pytest.approx(expected, rel=1e-3)
    assert kl_on_texts(lm, lm, TEXTS, form, batch_size=2) == 0


def test_an_edit_that_exists_only_inside_a_context(lm, other_lm, form):
    """The base must never run while the edit is on."""

    @contextmanager
    def editing():
        own = {name: value.clone() for name, value in lm.model.state_dict().items()}
        lm.model.load_state_dict(other_lm.model.state_dict())
        try:
            yield
        finally:
            lm.model.load_state_dict(own)

    expected = kl_on_texts(lm, other_lm, TEXTS, form, batch_size=2)
    assert kl_on_texts(lm, lm, TEXTS, form, batch_size=2, editing=editing) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([], "no documents"),
        ([{"query": "a"}], "document 1 needs text"),
        ([DOCUMENTS[0], {"query": "a", "answer": ""}], "document 2 has an empty answer"),
    ],
)
def test_bad_documents(lm, form, documents, message):
    with pytest.raises(BadInputError, match=message):
        answer_loss(lm, documents, form, batch_size=2)


def test_no_text_to_compare(lm, form):
    with pytest.raises(BadInputError, match="none of 2 texts has two tokens"):
        kl_on_texts(lm, lm, ["", ""], form, batch_size=2)


def test_other_vocabularies(lm, form, save_tiny, tmp_path):
    from alignez_bake.language_model.loading import load_language_model
    from alignez_bake.model_folder import open_model_folder

    larger = load_language_model(open_model_folder(save_tiny("llama", tmp_path / "m", overrides={"vocab_size": 384})))
    with pytest.raises(BadInputError, match="models of 320 and 384 tokens"):
        kl_on_texts(lm, larger, TEXTS, form, batch_size=2)
