"""What lies beside a graph says the same to transformers 4 and 5. What 4 makes of it: tests/optimum."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from alignez_bake.errors import BadInputError
from alignez_bake.model_folder import open_model_folder
from alignez_bake.onnx_export.companions import companion_files, read_by_both
from tests.baking import contents
from tests.tiny_models import COMBINATIONS, tiny_model, tiny_tokenizer

DEFAULT = {"rope_type": "default", "rope_theta": 5000.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
FACTORS = {"short_factor": [1.0 + i / 4 for i in range(8)], "long_factor": [2.0 + i for i in range(8)]}
ROPE = {
    "llama": {**LLAMA3, "original_max_position_embeddings": 64, "rope_theta": 5000.0},
    "gpt_neox": {**DEFAULT, "partial_rotary_factor": 0.5},
    "phi3": {"rope_type": "longrope", **FACTORS, "rope_theta": 5000.0, "original_max_position_embeddings": 64},
    "gemma3_text": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 7000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
    },
}


def beside(base, out, **settings):
    """The base's companions in a new folder."""
    (out / "alignez").mkdir(parents=True)
    folder = open_model_folder(base)
    return companion_files(folder, settings.pop("home", folder), out, **settings)


def saved(model_type, path, **overrides):
    """A tiny model and its tokenizer as transformers 5 saves them."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<extra>"]})
    tokenizer.save_pretrained(path)
    tiny_model(model_type, bias=(model_type, False) not in COMBINATIONS, overrides=overrides).save_pretrained(path)
    return path


@pytest.mark.parametrize(
    ("config", "added"),
    [
        ({"rope_parameters": DEFAULT}, {"rope_theta": 5000.0, "rope_scaling": None}),
        (
            {"rope_parameters": {**LLAMA3, "rope_theta": 5e5, "partial_rotary_factor": 0.5}},
            {"rope_theta": 5e5, "partial_rotary_factor": 0.5, "rope_scaling": LLAMA3},
        ),
        (
            {"model_type": "gpt_neox", "rope_parameters": ROPE["gpt_neox"]},
            {"rotary_emb_base": 5000.0, "rotary_pct": 0.5, "rope_scaling": None},
        ),
        (
            {"model_type": "phi3", "rope_parameters": ROPE["phi3"]},
            {"rope_theta": 5000.0, "rope_scaling": {**FACTORS, "type": "longrope"}},
        ),
        (
            {"model_type": "gemma3_text", "rope_parameters": ROPE["gemma3_text"]},
            {
                "rope_theta": 7000.0,
                "rope_local_base_freq": 300.0,
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            },
        ),
        ({"model_type": "qwen3_moe", "num_local_experts": 4}, {"num_experts": 4}),
        ({"model_type": "mixtral", "num_local_experts": 4}, {}),
        ({"rope_parameters": {"one": DEFAULT, "other": DEFAULT}}, {}),
        ({"rope_theta": 5000.0, "rope_scaling": None}, {}),
        ({"rope_parameters": DEFAULT, "rope_theta": 1.0, "rope_scaling": LLAMA3}, {}),
        ({"rope_parameters": None}, {}),
    ],
)
def test_what_4_calls_it_is_added(config, added):
    assert read_by_both(config) == {**config, **added}


@pytest.mark.parametrize("model_type", ROPE)
def test_transformers_5_reads_what_it_read_before(model_type, tmp_path):
    base = saved(model_type, tmp_path / "base", rope_parameters=ROPE[model_type])
    out = tmp_path / "out"
    beside(base, out)
    written = json.loads((out / "config.json").read_text())
    assert set(written) > set(json.loads((base / "config.json").read_text()))
    before, after = (AutoConfig.from_pretrained(path).rope_parameters for path in (base, out))
    assert {**after, **before} == after  # phi3 keeps the old name of `rope_type` beside it
    shutil.copyfile(base / "model.safetensors", out / "model.safetensors")
    ids = torch.arange(3, 200)[None]
    with torch.no_grad():
        before, after = (AutoModelForCausalLM.from_pretrained(path).eval()(ids).logits for path in (base, out))
    assert torch.equal(before, after)


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gpt2"])
def test_the_tokenizer_stays_the_same(model_type, tmp_path):
    base = saved(model_type, tmp_path / "base")
    beside(base, tmp_path / "out")
    old, new = (json.loads((tmp_path / name / "tokenizer_config.json").read_text()) for name in ("base", "out"))
    assert (old["tokenizer_class"], new["tokenizer_class"]) == ("TokenizersBackend", "PreTrainedTokenizerFast")
    assert old["extra_special_tokens"] == new["additional_special_tokens"] == ["<extra>"]
    assert "extra_special_tokens" not in new
    before, after = AutoTokenizer.from_pretrained(base), AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "How do I clean<extra> a kettle? 12"
    assert type(before) is type(after)
    assert before(text) == after(text)
    assert before.all_special_tokens == after.all_special_tokens
    assert "<extra>" in after.all_special_tokens


def test_files_without_a_change_are_the_bases_bytes_and_weights_are_left_out(tmp_path, save_tiny):
    base = save_tiny("gpt2", tmp_path / "base")
    (base / "README.md").write_text("# Base\n")
    (base / "pytorch_model.bin").write_bytes(b"weights")
    skipped = beside(base, tmp_path / "out")
    before, after = contents(base), contents(tmp_path / "out")
    assert after.pop("alignez/base_README.md") == before.pop("README.md")
    assert after.pop("alignez") is None
    assert [entry.name for entry in skipped] == ["pytorch_model.bin"]
    assert after == {name: data for name, data in before.items() if name not in ("model.safetensors", *_names(skipped))}


def _names(skipped):
    return [entry.name for entry in skipped]


def test_the_dtype_and_rewritten_files_are_written(tmp_path, tiny_folder):
    text = json.dumps({"tokenizer_class": "TokenizersBackend", "changed": True})
    beside(
        tiny_folder("llama"), tmp_path / "out", dtype="float16", rewritten={"tokenizer_config.json": text, "a.txt": "a"}
    )
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float16"
    tokenizer = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert tokenizer == {"tokenizer_class": "PreTrainedTokenizerFast", "changed": True}
    assert (tmp_path / "out" / "a.txt").read_text() == "a"


def test_a_missing_generation_config_has_the_configs_ids(tmp_path, save_tiny):
    base = save_tiny("llama", tmp_path / "base")
    (base / "generation_config.json").unlink()
    beside(base, tmp_path / "out")
    found = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert found == {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}


@pytest.mark.parametrize("text", ["{", "[]", "\udcff"])
def test_a_damaged_tokenizer_config_is_refused_before_anything_is_written(text, tmp_path, save_tiny):
    base = save_tiny("llama", tmp_path / "base")
    (base / "tokenizer_config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(BadInputError, match=r"tokenizer_config\.json"):
        beside(base, tmp_path / "out")
    assert list(contents(tmp_path / "out")) == ["alignez"]
