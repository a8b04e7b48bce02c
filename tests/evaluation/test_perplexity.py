import math

import pytest
import torch

from alignez_bake.errors import BadInputError
from alignez_bake.evaluation.perplexity import perplexity_on_texts

TEXTS = ["A bell rings in the morning.", "Rain.", "", "The river is wide, and nobody swims."]


def test_perplexity_is_that_of_all_tokens_but_the_first(lm, form):
    losses = []
    for text in TEXTS:
        ids = form.text_ids(text)
        with torch.no_grad():
            rows = torch.log_softmax(lm.model(torch.tensor([ids])).logits[0].double(), dim=-1)
        losses += [-float(rows[place, token]) for place, token in enumerate(ids[1:])]
    expected = math.exp(sum(losses) / len(losses))
    assert expected > 10
    assert perplexity_on_texts(lm, TEXTS, form, batch_size=2) == pytest.approx(expected, rel=1e-5)


def test_no_texts(lm, form):
    with pytest.raises(BadInputError, match="none of 1 texts has two tokens"):
        perplexity_on_texts(lm, [""], form, batch_size=2)
