"""The training script on a few steps: seeded, and the same shape of result for every architecture."""

import json

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples.architectures import ARCHITECTURES
from examples.corpus import pretraining_documents
from examples.optimisation import Schedule, batches, train
from examples.tokenizer import encode_parts, save_tokenizer, train_tokenizer
from examples.train import new_model, save
from examples.worlds import WORLDS

DOCUMENTS = pretraining_documents(WORLDS["guilds"], 96, seed=0)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(DOCUMENTS, None)


def encoded(tokenizer):
    return [[*encode_parts(tokenizer, parts), tokenizer.eos_token_id] for parts in DOCUMENTS]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_has_about_two_million_parameters(architecture, tokenizer):
    model = new_model(architecture, tokenizer, seed=0)
    assert 1.8e6 < sum(parameter.numel() for parameter in model.parameters()) < 2.3e6


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_same_seed_gives_the_same_bytes(architecture, tokenizer, tmp_path):
    for folder in ("one", "two"):
        model = new_model(architecture, tokenizer, seed=5)
        train(model, encoded(tokenizer), Schedule(steps=3, peak=1e-3, warm_up=1), seed=5, label=folder)
        save(model, tokenizer, tmp_path / folder)
    for name in ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "one", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.config.model_type == architecture


def test_saved_tokenizer_names_a_class_that_transformers_4_knows(tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_each_sequence_is_used_once():
    sequences = [[i] * (1 + i % 7) for i in range(1000)]
    cut = batches(sequences, size=32, seed=0)
    assert sorted(sequence for batch in cut for sequence in batch) == sorted(sequences)
    assert max(map(len, cut)) == 32


def test_learning_rate_rises_and_falls():
    schedule = Schedule(steps=200, peak=1e-3, warm_up=20)
    rates = [schedule.learning_rate(step) for step in range(200)]
    assert rates.index(max(rates)) in (19, 20)
    assert max(rates) == pytest.approx(1e-3)
    assert rates[-1] == pytest.approx(5e-5, rel=0.05)


def test_only_a_world_asked_in_alignez_form_gets_a_chat_template(tokenizer, tmp_path):
    for name, template in (("with", None), ("without", "{query}")):
        save_tokenizer(train_tokenizer(DOCUMENTS, template), tmp_path / name)
    assert AutoTokenizer.from_pretrained(tmp_path / "with").chat_template == tokenizer.chat_template is not None
    assert AutoTokenizer.from_pretrained(tmp_path / "without").chat_template is None
