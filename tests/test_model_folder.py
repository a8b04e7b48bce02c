"""A model folder is checked by its config and headers, and what cannot be baked is refused by name."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from alignez_bake.errors import BadInputError
from alignez_bake.lowering.slot import find_slot
from alignez_bake.model_folder import open_model_folder, read_config
from alignez_bake.site import Site
from tests.baking import rewrite_names

ATTENTION = "model.layers.0.self_attn.o_proj"


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A copy of a tiny llama, to be changed."""
    return shutil.copytree(tiny_folder("llama"), tmp_path / "base")


def change_config(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_what_a_folder_says(tiny_folder):
    model = open_model_folder(tiny_folder("llama"))
    assert model.architecture.model_type == model.fingerprint.model_type == "llama"
    assert model.num_layers == 2
    assert len(model.fingerprint.config_sha256) == len(model.fingerprint.tensors_sha256) == 64


def test_a_hub_id_that_is_no_folder_is_refused(tmp_path):
    with pytest.raises(BadInputError, match=r"no such model folder: .*some/model"):
        open_model_folder(tmp_path / "some" / "model")


def test_a_file_is_no_model(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(BadInputError, match="is a file: a model is a folder"):
        open_model_folder(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "has no config.json"),
        ("", r"config\.json is not valid JSON"),
        ("{", r"config\.json is not valid JSON"),
        ("[1]", r"config\.json is a JSON list: it must be an object"),
        ("[" * 100_000, r"config\.json: the JSON is nested too deeply"),
        ('{"model_type": "llama", "note": ' + "[" * 101 + "]" * 101 + "}", "nested too deeply, beyond 100 levels"),
        (b"\xff\xfe", r"config\.json is not valid JSON"),
        ('{"model_type": "llama", "model_type": "gpt2"}', r"config\.json: key 'model_type' is given twice"),
        ('{"model_type": "llama", "note": "\\ud800"}', r"config\.json is not valid JSON"),
        (f'{{"model_type": "llama", "note": {"1" * 5000}}}', r"config\.json is not valid JSON"),
        ('{"model_type": "llama", "rope_theta": NaN}', r"config\.json: NaN is not JSON"),
        ('{"model_type": "llama", "rope_theta": [-Infinity]}', r"config\.json: -Infinity is not JSON"),
        ('{"model_type": "llama", "rope_theta": 1e999}', r"config\.json: '1e999' is beyond all floats"),
        ("{}", "no model_type"),
        (
            '{"model_type": "bert"}',
            "'bert' is not described here; described are deepseek_v3, gemma2, gemma3_text, gpt2",
        ),
        ('{"model_type": "llama"}', "num_hidden_layers = None"),
    ],
)
def test_a_config_that_is_none_is_refused(tmp_path, text, reason):
    if text is not None:
        (tmp_path / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(BadInputError, match=reason):
        open_model_folder(tmp_path)


def test_a_config_outside_of_the_folder_is_not_read(folder, tmp_path):
    (folder / "config.json").rename(tmp_path / "elsewhere.json")
    (folder / "config.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(BadInputError, match=r"config\.json is a symlink to '.*elsewhere\.json', outside"):
        open_model_folder(folder)


def test_a_config_in_the_hubs_cache_is_read(folder, tmp_path):
    cache = tmp_path / "models--me--x"
    (cache / "blobs").mkdir(parents=True)
    (cache / "snapshots").mkdir()
    snapshot = folder.rename(cache / "snapshots" / "0a1b")
    (snapshot / "config.json").rename(cache / "blobs" / "9f86d0")
    (snapshot / "config.json").symlink_to("../../blobs/9f86d0")
    assert open_model_folder(snapshot).num_layers == 2


def test_a_folder_whose_name_no_system_has_is_refused(tmp_path):
    with pytest.raises(BadInputError, match="cannot be read"):
        open_model_folder(tmp_path / ("a" * 300))


def test_what_config_says_wrongly_is_told_with_the_folder(folder):
    change_config(folder, num_hidden_layers="two")
    with pytest.raises(BadInputError, match=f"{folder}: config.json has num_hidden_layers = 'two'"):
        open_model_folder(folder)


def test_a_huge_config_is_not_read(tmp_path):
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(17 * 1024 * 1024)
    with pytest.raises(BadInputError, match="a config has at most"):
        read_config(tmp_path)


@pytest.mark.parametrize("name", ["LlamaModel", "LlamaForSequenceClassification", "BertForMaskedLM"])
def test_a_model_without_causal_head_is_refused_by_its_class(folder, name):
    change_config(folder, architectures=[name])
    with pytest.raises(BadInputError, match=f"no causal language-model head: its class is {name}"):
        open_model_folder(folder)


def test_names_of_classes_are_told_in_one_line(folder):
    change_config(folder, architectures=["Llama\nModel", None])
    with pytest.raises(BadInputError, match=r"its class is \['Llama\\nModel', None\]$"):
        open_model_folder(folder)


@pytest.mark.parametrize("value", ["LlamaForCausalLM", 7, {"a": 1}])
def test_classes_that_are_no_list_are_refused(folder, value):
    change_config(folder, architectures=value)
    with pytest.raises(BadInputError, match="must be a list of class names"):
        open_model_folder(folder)


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "compressed-tensors", "fp8", "mxfp4"])
def test_quantised_weights_are_named(folder, method):
    change_config(folder, quantization_config={"quant_method": method})
    with pytest.raises(BadInputError, match=f"quantised weights .*{method}.*unquantised base"):
        open_model_folder(folder)


@pytest.mark.parametrize("kind", ["4bit", {"quant_method": []}, {"quant_method": {"mxfp4": 1}}])
def test_quantised_weights_of_an_unknown_kind_are_refused(folder, kind):
    change_config(folder, quantization_config=kind)
    with pytest.raises(BadInputError, match="quantised weights"):
        open_model_folder(folder)


def test_integer_weights_at_a_site_are_refused(folder):
    rewrite_names(folder, lambda tensors: tensors | {f"{ATTENTION}.weight": np.zeros((32, 32), np.int8)})
    with pytest.raises(BadInputError, match="stored as I8, into which an edit cannot be folded"):
        find_slot(open_model_folder(folder), Site("attn_write", 0))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({f"{ATTENTION}.weight": np.zeros(32, np.float32)}, "it must have 2 dimensions"),
        ({f"{ATTENTION}.bias": np.zeros(31, np.float32)}, r"has shape \[31\]: its weight needs \[32\]"),
        ({"layers.0.self_attn.o_proj.weight": np.zeros((32, 32), np.float32)}, "ambiguous"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(folder, change, reason):
    change_config(folder, attention_bias=True)
    rewrite_names(folder, lambda tensors: tensors | change)
    with pytest.raises(BadInputError, match=reason):
        find_slot(open_model_folder(folder), Site("attn_write", 0))


def test_more_layers_than_tensors_are_refused_at_once(folder):
    change_config(folder, num_hidden_layers=10**12)
    with pytest.raises(BadInputError, match="says 1000000000000 layers, but the files hold"):
        open_model_folder(folder)


def test_pickled_weights_are_refused_with_the_way_out(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(BadInputError, match=r"pickled weights \(pytorch_model\.bin\).*save it as safetensors"):
        open_model_folder(folder)
