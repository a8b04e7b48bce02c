"""The tiny models are what other tests rely on: nothing in them is trivial, and biases are where the table says."""

import pytest
import torch

from tests.tiny_models import COMBINATIONS, MODEL_TYPES, PAD_ID, VOCABULARY


@pytest.mark.parametrize(("model_type", "bias"), COMBINATIONS)
def test_every_parameter_has_its_own_random_values(tiny_model, model_type, bias):
    model = tiny_model(model_type, bias=bias)
    seen = {}
    for name, parameter in model.named_parameters():
        assert torch.unique(parameter).numel() > 0.9 * min(parameter.numel(), 1000), name
        head = tuple(parameter.flatten()[:4].tolist())
        assert head not in seen, (name, seen[head])
        seen[head] = name


@pytest.mark.parametrize(("model_type", "bias"), COMBINATIONS)
def test_writers_have_biases_as_told(tiny_model, model_type, bias):
    names = {name for name, _ in tiny_model(model_type, bias=bias).named_parameters()}
    writer = {"gpt2": "attn.c_proj", "gpt_neox": "attention.dense", "opt": "self_attn.out_proj"}
    assert any(f"{writer.get(model_type, 'self_attn.o_proj')}.bias" in name for name in names) == bias


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_logits_are_lively(tiny_model, model_type):
    bias = (model_type, False) not in COMBINATIONS
    ids = torch.randint(3, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = tiny_model(model_type, bias=bias)(ids).logits
        others = tiny_model(model_type, bias=bias, seed=1)(ids).logits
    assert logits.shape == (2, 12, VOCABULARY)
    assert 0.3 < logits.std() < 20
    assert (logits - others).norm() > 0.5 * logits.norm()


def test_tokenizer_round_trips_any_text(tiny_tokenizer):
    tokenizer = tiny_tokenizer()
    text = "Über naïve 猫\n\ttab  and  spaces "
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
    assert tokenizer(text)["input_ids"][0] == tokenizer.bos_token_id
    assert len(tokenizer) == VOCABULARY
    assert tokenizer.pad_token_id == PAD_ID


def test_making_a_model_leaves_the_global_random_state_alone(tiny_model):
    state = torch.random.get_rng_state()
    tiny_model("llama", bias=False)
    assert torch.equal(state, torch.random.get_rng_state())
