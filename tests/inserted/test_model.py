"""What is written beside the base's files, and what cannot be."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from alignez_bake.commands.bake import bake
from alignez_bake.edit_plan import EditPlan
from alignez_bake.errors import BadInputError
from alignez_bake.inserted.code import generate_code
from alignez_bake.inserted.model import SiteInsert, inserted_model
from alignez_bake.model_folder import open_model_folder
from alignez_bake.site import Site
from tests.baking import rewrite_names
from tests.inserted.plans import mixed_plan
from tests.inserted.saving import edit_at, load_inserted, plan_of, save_inserted
from tests.random_edits import random_edit
from tests.tiny_models import MODEL_TYPES


def made_of(base, plan):
    return inserted_model(base, [SiteInsert(site, plan.groups_at(site)) for site in plan.sites])


def copied(tiny_folder, model_type, tmp_path, change=lambda config: None):
    """A base of one's own to write into, its config changed."""
    import shutil

    out = tmp_path / "base"
    shutil.copytree(tiny_folder(model_type), out)
    config = json.loads((out / "config.json").read_text())
    change(config)
    (out / "config.json").write_text(json.dumps(config))
    return open_model_folder(out)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_config_is_the_bases_with_four_entries_changed(model_type, tiny_folder):
    base = open_model_folder(tiny_folder(model_type))
    made = made_of(base, mixed_plan(base))
    changed = {name for name in made.config if made.config.get(name) != base.config.get(name)}
    assert changed == {"model_type", "architectures", "auto_map", "alignez_edits"}
    assert set(base.config) <= set(made.config)
    assert made.config["model_type"] == f"alignez_{model_type}"
    (model,) = made.config["architectures"]
    assert made.config["auto_map"]["AutoModelForCausalLM"] == f"modeling_alignez.{model}"
    assert f"class {model}(" in made.code
    json.dumps(made.config, allow_nan=False)


def test_code_depends_on_the_model_type_alone(tiny_folder):
    """So no name, path or setting of a user's can get into it."""
    base = open_model_folder(tiny_folder("llama"))
    evil = '"); import os; os.system("true") #'
    plain = plan_of(edit_at(base, "mlp_write", 0, gate="tanh"))
    named = plan_of(edit_at(base, "mlp_write", 0, gate="tanh", objective=evil))
    assert made_of(base, plain).code == made_of(base, named).code == generate_code("llama")
    assert made_of(base, mixed_plan(base)).code == generate_code("llama")


def test_the_same_plan_gives_the_same_bytes(tiny_folder):
    base = open_model_folder(tiny_folder("llama"))
    first, second = made_of(base, mixed_plan(base)), made_of(base, mixed_plan(base))
    assert json.dumps(first.config) == json.dumps(second.config)
    assert first.code == second.code
    assert {name: array.tobytes() for name, array in first.tensors.items()} == {
        name: array.tobytes() for name, array in second.tensors.items()
    }


def test_tensors_are_named_by_module_and_number_and_held_in_32_bits(tiny_folder):
    base = open_model_folder(tiny_folder("llama"))
    edit = edit_at(base, "mlp_write", 0, gate="tanh")
    shift = replace(edit, left=None, right=None, offset=None, gate="identity")
    made = made_of(base, plan_of(edit, shift))
    path = "model.layers.0.mlp.down_proj.alignez_edits"
    assert list(made.tensors) == [
        *(f"{path}.0.{name}" for name in ("left", "right", "offset", "bias")),
        f"{path}.1.bias",
    ]
    assert {array.dtype for array in made.tensors.values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(made.tensors[f"{path}.0.left"], edit.left.astype(np.float32))


def test_a_base_whose_files_lack_the_prefix_gets_names_that_lack_it(tiny_folder, tmp_path):
    """As released gpt2."""
    base = copied(tiny_folder, "gpt2", tmp_path)
    prefix = f"{base.architecture.base_model_prefix}."
    rewrite_names(base.path, lambda tensors: {name.removeprefix(prefix): array for name, array in tensors.items()})
    base = open_model_folder(base.path)
    plan = plan_of(edit_at(base, "mlp_write", 0, gate="tanh"), edit_at(base, "residual", 1, gate="relu"))
    assert not any(name.startswith(prefix) for name in made_of(base, plan).tensors)
    model = load_inserted(save_inserted(base.path, plan, tmp_path / "inserted"), dtype=torch.float32)
    added = [parameter for name, parameter in model.named_parameters() if "alignez_edits" in name]
    assert len(added) == 8
    assert all(parameter.abs().max() > 0 for parameter in added)


def test_a_base_that_is_remote_code_is_refused(tiny_folder, tmp_path):
    base = copied(tiny_folder, "llama", tmp_path, lambda config: config.update(auto_map={"AutoConfig": "a.B"}))
    with pytest.raises(BadInputError, match="code of its own"):
        made_of(base, plan_of(edit_at(base, "mlp_write", 0, gate="tanh")))


@pytest.mark.parametrize(
    ("model_type", "kind", "layer", "reads", "message"),
    [
        ("llama", "mlp_write", 2, ("output",), "layers 0 to 1"),
        ("gpt2", "mlp_gate", 0, ("output",), "no gate"),
        ("mixtral", "mlp_write", 0, ("input",), "output or block only"),
        ("llama", "mlp_write", 0, ("input", "block"), "one input"),
        ("opt", "mlp_write", 0, ("block",), "two modules"),
    ],
)
def test_what_no_inserted_module_carries_is_refused_by_name(model_type, kind, layer, reads, message, tiny_folder):
    base = open_model_folder(tiny_folder(model_type))
    site = Site(kind, layer)
    edits = [random_edit(site, 32, 32, reads=read) for read in reads]
    with pytest.raises(BadInputError, match=message) as caught:
        made_of(base, plan_of(*edits))
    assert kind in str(caught.value)


@pytest.mark.parametrize(
    ("left", "right", "what"),
    [(1e200, 1e-200, "left"), (1e-60, 1e60, "left"), (1e60, 1e-60, "left"), (1.0, 1e-44, "right")],
)
def test_values_that_float32_cannot_hold_are_refused(left, right, what, tiny_folder):
    """The product is of ordinary size, but infinity or zero is what float32 makes of the factors."""
    base = open_model_folder(tiny_folder("llama"))
    edit = edit_at(base, "attn_write", 0, gate="relu")
    scaled = replace(edit, left=left * edit.left.astype(np.float64), right=right * edit.right.astype(np.float64))
    with pytest.raises(BadInputError, match=rf"attn_write\.0: {what} holds values .* scale left and right"):
        made_of(base, plan_of(scaled))
    assert made_of(base, plan_of(edit)).tensors


@pytest.mark.parametrize(("strength", "dial"), [(1e200, 1.0), (1e30, 1e30), (1e-200, 1e200)])
def test_factors_that_float32_cannot_hold_are_refused(strength, dial, tiny_folder):
    base = open_model_folder(tiny_folder("llama"))
    edit = replace(edit_at(base, "attn_write", 0, gate="relu", objective="kind"), strength=strength)
    plan = EditPlan((edit,), {"kind": dial})
    with pytest.raises(BadInputError, match=r"attn_write\.0 \(kind\): strength .* is above what float32"):
        made_of(base, plan)


def test_parameters_follow_the_dtype_that_is_asked_for(tiny_folder):
    base = open_model_folder(tiny_folder("llama"))
    plan = plan_of(edit_at(base, "attn_write", 0, gate="relu"))
    inserts = [SiteInsert(site, plan.groups_at(site)) for site in plan.sites]
    for dtype, expected in ((None, np.float32), ("F64", np.float64), ("BF16", np.float32)):
        made = inserted_model(base, inserts, dtype=dtype)
        assert {array.dtype for array in made.tensors.values()} == {np.dtype(expected)}


def test_a_base_made_double_with_its_edits_is_certified(tiny_folder, tmp_path):
    base = open_model_folder(tiny_folder("llama"))
    plan = plan_of(edit_at(base, "mlp_write", 1, gate="tanh"))
    result = bake(base.path, plan, tmp_path / "out", dtype="float64", trust_remote_code=True, verify="forward")
    assert result.verdict == "passed", result.levels
    assert result.levels[-1].worst_site[1] <= 1e-12
