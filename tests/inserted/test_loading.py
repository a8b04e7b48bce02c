"""Who may load an inserted checkpoint and who may not, and what is said."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from alignez_bake.inserted.code import classes_for
from alignez_bake.model_folder import open_model_folder
from tests.inserted.saving import edit_at, load_inserted, plan_of, save_inserted
from tests.tiny_models import MODEL_TYPES

QUANTISED = {"quant_method": "bitsandbytes", "load_in_4bit": True}
TEXT = "Human: How do I clean a copper kettle?"


@pytest.fixture(scope="module")
def folders(tiny_folder, tmp_path_factory):
    """A checkpoint with an edit of a map and one with an edit of a layer, for each base."""
    made = {}

    def folder(model_type, kind="mlp_write"):
        key = (model_type, kind)
        if key not in made:
            base = tiny_folder(model_type)
            plan = plan_of(edit_at(open_model_folder(base), kind, 0, gate="tanh"))
            made[key] = save_inserted(base, plan, tmp_path_factory.mktemp("inserted") / f"{model_type}_{kind}")
        return made[key]

    return folder


@pytest.fixture
def changed(folders, tmp_path):
    """A copy of the llama checkpoint with entries of its edits changed."""

    def copy(change, kind="mlp_write"):
        out = tmp_path / "changed"
        shutil.copytree(folders("llama", kind), out)
        config = json.loads((out / "config.json").read_text())
        change(config)
        (out / "config.json").write_text(json.dumps(config))
        return out

    return copy


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_without_the_flag_the_auto_classes_refuse_in_their_own_words(model_type, folders):
    for auto in (AutoConfig, AutoModelForCausalLM):
        for settings in ({}, {"trust_remote_code": False}):
            with pytest.raises(ValueError, match="trust_remote_code=True"):
                auto.from_pretrained(folders(model_type), **settings)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_tokenizer_loads_with_and_without_the_flag(model_type, folders, tiny_folder):
    expected = AutoTokenizer.from_pretrained(tiny_folder(model_type))
    for settings in ({}, {"trust_remote_code": False}, {"trust_remote_code": True}):
        tokenizer = AutoTokenizer.from_pretrained(folders(model_type), **settings)
        assert tokenizer(TEXT).input_ids == expected(TEXT).input_ids


@pytest.mark.skipif(transformers.__version__ < "5", reason="transformers 4 looks into tokenizer_config.json alone")
# gemma's class cannot read the tiny tokenizer, under the base's own type either.
@pytest.mark.parametrize("model_type", [name for name in MODEL_TYPES if name not in ("gemma2", "gemma3_text")])
def test_a_tokenizer_without_a_class_is_the_one_of_the_bases_type(model_type, tiny_folder, tmp_path):
    """As in released gpt2: transformers then goes by the model type."""
    base = tmp_path / "base"
    shutil.copytree(tiny_folder(model_type), base)
    settings = json.loads((base / "tokenizer_config.json").read_text())
    del settings["tokenizer_class"]
    (base / "tokenizer_config.json").write_text(json.dumps(settings))
    out = save_inserted(base, plan_of(edit_at(open_model_folder(base), "mlp_write", 0)), tmp_path / "out")
    expected = AutoTokenizer.from_pretrained(base)
    for settings in ({}, {"trust_remote_code": True}):
        tokenizer = AutoTokenizer.from_pretrained(out, **settings)
        assert type(tokenizer) is type(expected)
        assert tokenizer(TEXT).input_ids == expected(TEXT).input_ids


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_loaded_classes_are_the_bases_and_ours(model_type, folders):
    model = load_inserted(folders(model_type), dtype="auto")
    classes = classes_for(model_type)
    assert type(model).__name__ == classes.own_model
    assert isinstance(model, getattr(transformers, classes.model))
    assert model.config.model_type == f"alignez_{model_type}"
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("path", ["model.layers.7.mlp.down_proj", "model.layers.0.mlp.nothing", "__class__", None])
def test_a_path_that_is_no_module_is_named(path, changed):
    def change(config):
        config["alignez_edits"][0]["module"] = path

    with pytest.raises(ValueError, match=f"{path!r}, which is no module"):
        load_inserted(changed(change))


@pytest.mark.parametrize("kind", ["mlp_write", "attn_write"])
def test_quantising_an_edited_map_is_refused(kind, folders):
    """bitsandbytes puts modules of its own in the place of the edited ones, without a word."""
    config = AutoConfig.from_pretrained(folders("llama", kind), trust_remote_code=True)
    config.quantization_config = QUANTISED
    with pytest.raises(ValueError, match="would lose its edits"):
        AutoModelForCausalLM.from_config(config, trust_remote_code=True)


def test_from_pretrained_tells_the_model_of_its_quantisation_before_it_is_built(folders, monkeypatch):
    """What the refusal above rests on, with a quantiser that needs no package."""
    from transformers import quantizers

    asked = quantizers.auto.AutoHfQuantizer.from_config

    def from_config(config, **settings):
        quantizer = asked(config, **settings)
        monkeypatch.setattr(type(quantizer), "validate_environment", lambda *_args, **_settings: None)
        return quantizer

    monkeypatch.setattr(quantizers.auto.AutoHfQuantizer, "from_config", from_config)
    with pytest.raises(ValueError, match="would lose its edits"):
        load_inserted(folders("llama"), quantization_config=BitsAndBytesConfig(load_in_8bit=True))


def test_an_edited_layer_may_be_quantised(folders):
    """Its class stays: quantisers replace linear maps."""
    config = AutoConfig.from_pretrained(folders("llama", "residual"), trust_remote_code=True)
    config.quantization_config = QUANTISED
    model = AutoModelForCausalLM.from_config(config, trust_remote_code=True)
    assert len(model.model.layers[0].alignez_edits) == 1


def test_tensors_that_are_not_there_are_reported(folders, tmp_path):
    from tests.baking import rewrite_names

    out = tmp_path / "lacking"
    shutil.copytree(folders("llama"), out)
    config = (out / "config.json").read_text()
    (out / "config.json").write_text(config.replace('"alignez_llama"', '"llama"'))  # for our own reader
    rewrite_names(out, lambda tensors: {name: array for name, array in tensors.items() if not name.endswith(".left")})
    (out / "config.json").write_text(config)
    _, info = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True, output_loading_info=True)
    assert set(info["missing_keys"]) == {"model.layers.0.mlp.down_proj.alignez_edits.0.left"}


def test_the_models_dtype_is_the_bases(folders):
    model = load_inserted(folders("llama"), dtype="auto")
    assert model.dtype == torch.float32
