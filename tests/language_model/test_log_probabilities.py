import pytest
import torch

from alignez_bake.errors import BadInputError
from alignez_bake.language_model.log_probabilities import answer_log_probabilities, iter_answer_logits
from tests.tiny_models import MODEL_TYPES, VOCABULARY

CONTEXTS = [[0, 40, 41, 42, 43, 44], [0], [0, 60, 61]]
ANSWERS = [[5, 6], [7, 8, 9, 10, 11], [12]]


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_equal_to_one_plain_forward_pass_each(tiny_lm, model_type):
    lm = tiny_lm(model_type)
    got = answer_log_probabilities(lm, CONTEXTS, ANSWERS, batch_size=3)
    for context, answer, values in zip(CONTEXTS, ANSWERS, got, strict=True):
        ids = torch.tensor([context + answer])
        with torch.no_grad():
            expected = torch.log_softmax(lm.model(ids).logits.double()[0], dim=-1)
        expected = expected[range(len(context) - 1, len(context) + len(answer) - 1), answer]
        assert values.dtype == torch.float32
        torch.testing.assert_close(values.double(), expected, rtol=1e-5, atol=1e-5)
        assert values.shape == (len(answer),)
        assert (values <= 0).all()


def test_logits_come_with_their_place(tiny_lm):
    seen = {
        entry.place: entry.logits for entry in iter_answer_logits(tiny_lm("llama"), CONTEXTS, ANSWERS, batch_size=2)
    }
    assert {place: tuple(logits.shape) for place, logits in seen.items()} == {
        0: (2, VOCABULARY),
        1: (5, VOCABULARY),
        2: (1, VOCABULARY),
    }


@pytest.mark.parametrize(
    ("contexts", "answers", "message"),
    [
        ([[1]], [[]], "answer 0 is empty"),
        ([[1], []], [[1], [1]], "context 1 is empty"),
        ([[1]], [[1], [2]], "1 contexts for 2 answers"),
        ([[1] * 200], [[1] * 100], "too long"),
    ],
)
def test_bad_input(tiny_lm, contexts, answers, message):
    with pytest.raises(BadInputError, match=message):
        answer_log_probabilities(tiny_lm("llama"), contexts, answers, batch_size=2)
