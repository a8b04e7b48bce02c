import dataclasses
import json
import shutil
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.utils import logging as transformers_logging

from alignez_bake.errors import BadInputError
from alignez_bake.language_model import loading
from alignez_bake.language_model.loading import load_language_model, load_model, quiet_transformers, tokenizer_of
from alignez_bake.model_folder import open_model_folder
from tests.tiny_models import COMBINATIONS, EOS_ID, PAD_ID, VOCABULARY


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A copy of a tiny llama that a test may damage."""
    return shutil.copytree(tiny_folder("llama"), tmp_path / "model")


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def change_json(file, **entries):
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


def load(folder, **settings):
    return load_language_model(open_model_folder(folder), **settings)


@pytest.mark.parametrize(("model_type", "bias"), COMBINATIONS)
def test_the_loaded_model_is_the_saved_one(tiny_lm, tiny_model, model_type, bias):
    lm = tiny_lm(model_type, bias)
    saved = dict(tiny_model(model_type, bias=bias).named_parameters())
    for name, parameter in lm.model.named_parameters():
        assert torch.equal(parameter, saved[name]), name
        assert not parameter.requires_grad
    assert not lm.model.training
    assert (lm.pad_id, lm.eos_ids, lm.vocabulary_size) == (PAD_ID, (EOS_ID,), VOCABULARY)
    assert lm.architecture.model_type == model_type


def test_an_architecture_that_needs_a_newer_transformers_is_refused(tiny_folder, monkeypatch):
    llama, mixtral = tiny_folder("llama"), tiny_folder("mixtral")
    for version, least in (("4.57.6", "5"), ("5.23.0", "5.24"), ("4.57.6.dev0", "5")):
        monkeypatch.setattr(loading.transformers, "__version__", version)
        described = open_model_folder(mixtral)
        newer = dataclasses.replace(described.architecture, min_transformers=least)
        for loader in (load_language_model, load_model):
            with pytest.raises(
                BadInputError, match=rf"mixtral .* transformers {least} or newer, but {version} is inst"
            ):
                loader(dataclasses.replace(described, architecture=newer))
        load(llama)
    monkeypatch.setattr(loading.transformers, "__version__", "5.0.0rc1")
    load(mixtral)


def test_dtype_is_the_stored_one_unless_given(save_tiny, tmp_path):
    """Of language models see `test_running_dtype`."""
    save_tiny("llama", tmp_path / "m", dtype=torch.bfloat16)
    folder = open_model_folder(tmp_path / "m")
    assert load_model(folder).model.dtype == torch.bfloat16
    for loader in (load_language_model, load_model):
        assert loader(folder, dtype=torch.float64).model.dtype == torch.float64


def test_a_missing_tensor_is_named(folder):
    change_weights(folder, lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(BadInputError, match=r"lacks tensors .*: model\.layers\.1\.mlp\.up_proj\.weight;"):
        load(folder)


def test_a_left_over_tensor_stays_unused_and_is_named(folder):
    change_weights(folder, lambda weights: weights.update({"mtp.layers.0.weight": torch.ones(2)}))
    assert load(folder).unused_keys == ("mtp.layers.0.weight",)


def test_many_keys_are_counted(folder):
    def drop(weights):
        for name in sorted(weights)[:9]:
            del weights[name]

    change_weights(folder, drop)
    with pytest.raises(BadInputError, match=r"lacks tensors that the model needs, .* and 4 more"):
        load(folder)


def test_a_tensor_of_another_shape_is_named(folder):
    change_weights(folder, lambda weights: weights.update({"model.norm.weight": torch.ones(7)}))
    with pytest.raises(BadInputError, match=r"of another shape than the config says: model\.norm\.weight;"):
        load(folder)


def test_buffers_that_transformers_ignores_do_no_harm(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder("gpt_neox"), tmp_path / "m")
    change_weights(folder, lambda weights: weights.update({"gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 4, 4)}))
    load(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(folder, value):
    def spoil(weights):
        weights["model.layers.0.mlp.down_proj.weight"][3, 5] = value

    change_weights(folder, spoil)
    with pytest.raises(BadInputError, match=r"model\.layers\.0\.mlp\.down_proj\.weight holds NaN or infinity"):
        load(folder)


def test_a_folder_without_tokenizer(folder):
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).unlink()
    with pytest.raises(BadInputError, match="has no tokenizer"):
        load(folder)


def test_a_damaged_tokenizer(folder):
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(BadInputError, match="cannot load the tokenizer of"):
        tokenizer_of(folder)


@pytest.mark.parametrize("device", ["cuda:7", "no-such-thing", "meta"])
def test_a_device_that_is_not_there(folder, device):
    with pytest.raises(BadInputError, match=rf"device '{device}' .*: .*cpu"):
        load(folder, device=device)


def test_remote_code_needs_the_flag(folder):
    change_json(folder / "tokenizer_config.json", tokenizer_class="Own", auto_map={"AutoTokenizer": ["own.Own", None]})
    (folder / "own.py").write_text("raise SystemExit('ran')")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(BadInputError, match="--trust-remote-code"):
        tokenizer_of(folder)


def test_without_padding_token_eos_pads(tiny_tokenizer, save_tiny, tmp_path):
    save_tiny("llama", tmp_path / "m", tokenizer=tiny_tokenizer(pad=False))
    lm = load(tmp_path / "m")
    assert lm.pad_id == EOS_ID
    assert lm.model.get_input_embeddings().num_embeddings == VOCABULARY


def test_all_eos_ids_count(folder):
    change_json(folder / "generation_config.json", eos_token_id=[7, 9, 100_000])
    assert load(folder).eos_ids == (7, 9, EOS_ID)


def test_ids_and_lengths_that_do_not_fit(tiny_lm):
    lm = tiny_lm("llama")
    lm.check_fits([[0] * 256])
    with pytest.raises(BadInputError, match=r"255 tokens and 2 new ones is too long .* 256 positions"):
        lm.check_fits([[1], [0] * 255], new_tokens=2)
    with pytest.raises(BadInputError, match="gives id 320, but the model embeds only 320"):
        lm.check_fits([[1, 320, 3]])


def test_the_tokenizer_fingerprint_follows_the_vocabulary(tiny_lm, tiny_folder, save_tiny, tiny_tokenizer, tmp_path):
    other = tiny_tokenizer()
    other.add_tokens(["newword"])
    save_tiny("llama", tmp_path / "m", tokenizer=other)
    assert tiny_lm("llama").tokenizer_sha256 == tiny_lm("gpt2").tokenizer_sha256
    assert load(tmp_path / "m").tokenizer_sha256 != tiny_lm("llama").tokenizer_sha256


def test_loading_says_nothing_and_leaves_the_log_settings_alone(folder, capfd):
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    filters = list(warnings.filters)
    load(folder)
    with pytest.raises(RuntimeError, match="mine"), quiet_transformers():
        raise RuntimeError("mine")
    assert transformers_logging.get_verbosity() == verbosity
    assert transformers_logging.is_progress_bar_enabled() == bars
    assert list(warnings.filters) == filters
    assert capfd.readouterr() == ("", "")
