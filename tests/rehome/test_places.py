"""The data files against the live models and config classes of the installed transformers."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from alignez_bake.architectures.architecture import architecture_for, known_model_types
from alignez_bake.rehome.places import described_model_types, places_of
from tests.tiny_models import COMBINATIONS, MODEL_TYPES

SWITCHES = [(model_type, switch) for model_type in described_model_types() for switch in places_of(model_type).switches]
WITH_MLP = [model_type for model_type in described_model_types() if places_of(model_type).mlp is not None]
WITH_EQUIVALENT = [model_type for model_type in described_model_types() if places_of(model_type).equivalent is not None]


def parameters(config) -> dict[str, torch.Size]:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def plain_defaults(model_type: str) -> dict:
    """Defaults of a config class as they are declared, before it fills in what depends on others."""
    cls = CONFIG_MAPPING[model_type]
    return {field.name: field.default for field in fields(cls)}


def test_what_is_described_is_an_architecture():
    assert set(described_model_types()) <= set(known_model_types())
    assert places_of("mamba") is None
    assert {"llama", "mistral", "qwen2"} <= set(described_model_types())


@pytest.mark.parametrize(("model_type", "switch"), SWITCHES)
def test_a_switch_brings_the_biases_of_its_maps_and_no_other_parameter(model_type, switch, tiny_model):
    config = tiny_model(model_type, bias=False).config
    off, on = (parameters(AutoConfig.for_model(**{**config.to_dict(), switch.entry: value})) for value in (False, True))
    layers = architecture_for({"model_type": model_type}).layers
    expected = {f"{layers}.{layer}.{module}.bias" for layer in range(2) for module in switch.modules}
    assert set(on) - set(off) == expected
    assert set(off) <= set(on)
    for name in expected:  # a zero bias of as many values as the weight has rows
        assert on[name] == on[name.replace(".bias", ".weight")][:1]
    assert plain_defaults(model_type)[switch.entry] is switch.default


@pytest.mark.parametrize("model_type", [name for name in MODEL_TYPES if name in described_model_types()])
def test_what_has_no_switch_has_none_of_its_own(model_type):
    """Boolean entries with "bias" in their names are all described."""
    named = {name for name, value in plain_defaults(model_type).items() if "bias" in name and value in (True, False)}
    assert named == {switch.entry for switch in places_of(model_type).switches}


@pytest.mark.parametrize("model_type", WITH_MLP)
def test_the_mlp_computes_what_its_data_says(model_type, tiny_model):
    bias = (model_type, True) in COMBINATIONS
    model = tiny_model(model_type, bias=bias, dtype=torch.float64)
    mlp, config = places_of(model_type).mlp, json.loads(model.config.to_json_string(use_diff=False))
    layer = model.get_submodule(architecture_for(config).layer_path(1))
    maps = {name: layer.get_submodule(name) for name in (*mlp.readers, mlp.write)}
    oriented = {name: m.weight if mlp.layout == "out_in" else m.weight.T for name, m in maps.items()}
    for name in mlp.readers:
        assert oriented[name].shape[0] == config[mlp.size]
    assert oriented[mlp.write].shape[1] == config[mlp.size]
    seen = {}
    handles = [
        module.register_forward_hook(lambda _m, args, output, name=name: seen.__setitem__(name, (args[0], output)))
        for name, module in maps.items()
    ]
    with torch.no_grad():
        model(torch.arange(3, 11)[None])
    for handle in handles:
        handle.remove()
    from transformers.activations import ACT2FN

    hidden = ACT2FN[mlp.activation_of(config)](seen[mlp.read][1])
    if mlp.factor is not None:
        hidden = hidden * seen[mlp.factor][1]
        assert torch.equal(seen[mlp.read][0], seen[mlp.factor][0])
    assert torch.equal(hidden, seen[mlp.write][0])
    assert plain_defaults(model_type)[mlp.activation.entry] == mlp.activation.default


@pytest.mark.parametrize("model_type", WITH_EQUIVALENT)
def test_defaults_are_those_of_the_source_class(model_type):
    """Every entry of the class is accounted for, with its own default."""
    equivalent, declared = places_of(model_type).equivalent, plain_defaults(model_type)
    for name, default in equivalent.entries.items():
        assert declared.get(name) == default, name
    for name, dropped in equivalent.dropped.items():
        if name in declared:
            assert declared[name] == dropped.default, name
    own = set(declared) - set(plain_defaults("llama")) | {"vocab_size", "hidden_size", "rms_norm_eps"}
    assert own <= set(equivalent.entries) | set(equivalent.dropped)
    for kind in (model_type, equivalent.model_type):
        assert CONFIG_MAPPING[kind]().rope_parameters["rope_theta"] == equivalent.rope_theta


@pytest.mark.parametrize("model_type", WITH_EQUIVALENT)
def test_the_two_classes_differ_in_nothing_that_is_not_accounted_for(model_type):
    """What llama has beyond the source is switched explicitly or does nothing."""
    equivalent = places_of(model_type).equivalent
    accounted = {*equivalent.entries, *equivalent.added, *equivalent.carried}
    assert set(plain_defaults(equivalent.model_type)) - accounted - set(plain_defaults(model_type)) == {
        "pretraining_tp"
    }


def test_a_class_of_the_equivalent_is_what_loads(tiny_model):
    for model_type in WITH_EQUIVALENT:
        equivalent = places_of(model_type).equivalent
        assert type(tiny_model(equivalent.model_type, bias=False)).__name__ == equivalent.class_name
