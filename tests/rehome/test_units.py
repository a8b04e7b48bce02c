"""Hidden units against the hooked edits that they carry."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers.activations import ACT2FN

from alignez_bake.edit import Edit
from alignez_bake.edit_plan import EditPlan, SiteValues, apply_groups
from alignez_bake.lowering.decide import Refusal
from alignez_bake.lowering.hooks import edited_by_hooks
from alignez_bake.lowering.slot import find_slot
from alignez_bake.model_folder import open_model_folder
from alignez_bake.rehome.places import places_of
from alignez_bake.rehome.rehome import rehome
from alignez_bake.rehome.units import unit_values, unit_writes
from alignez_bake.site import Site
from tests.random_edits import random_edit
from tests.rehome.rehoming import FP32_END, MARGIN, logits_of, write_folder
from tests.running import load, relative

LAYERS = (0, 1)


def block_edit(layer, width, *, gate="identity", seed=0, constant=True, objective=None, rank=2):
    edit = random_edit(
        Site("mlp_write", layer), width, width, reads="block", constant=constant, seed=seed, rank=rank,
        objective=objective, scale=1.0,
    )  # fmt: skip
    return replace(edit, gate=gate, strength=0.7)


def values_with_units(base, rehomed, plan, *, dtype="F32", change=lambda values: values):
    """Tensors of the equivalent that hold the units of a plan; `change` mutates the units of a layer."""
    tensors = {name: rehomed.tensors.read(name).astype(np.float64) for name in rehomed.tensors}
    for site in plan.sites:
        values = change(unit_values(base, plan.groups_at(site), dtype=dtype, approximate=True))
        for name, (part, new) in unit_writes(base, rehomed, site.layer, values).items():
            tensors[name][part] = new
        tensors[find_slot(rehomed, site).bias] += values.constant
    return tensors


def rehomed_for(base, plan, dtype="F32"):
    counts = {
        site.layer: unit_values(base, plan.groups_at(site), dtype=dtype, approximate=True).count for site in plan.sites
    }
    return rehome(base, bias_sites=plan.sites, units=counts)


def mixed_plan(width, gate):
    """At each layer two objectives with dials, one of them a chain that ends in a shift."""
    edits = []
    for layer in LAYERS:
        edits += [
            block_edit(layer, width, gate=gate, seed=1 + 10 * layer, objective="helpful"),
            block_edit(layer, width, seed=2 + 10 * layer, objective="harmless", constant=False),
            block_edit(layer, width, gate=gate, seed=3 + 10 * layer, objective="harmless", rank=3),
            Edit(Site("mlp_write", layer), bias=np.linspace(-0.2, 0.3, width), objective="harmless", strength=-2.0),
        ]
    return EditPlan(tuple(edits), {"helpful": 1.5, "harmless": -0.5})


CASES = [
    (model_type, bias, gate)
    for model_type, bias in [
        ("llama", False), ("llama", True), ("mistral", False), ("qwen2", False), ("gpt2", True), ("gpt_neox", False),
        ("opt", False), ("opt", True),
    ]
    for gate in ("identity", "relu")
]  # fmt: skip


@pytest.mark.parametrize(("model_type", "bias", "gate"), CASES)
def test_units_equal_the_hooked_edit(model_type, bias, gate, tmp_path, tiny_folder):
    base = open_model_folder(tiny_folder(model_type, bias))
    plan = mixed_plan(32, gate)
    rehomed = rehomed_for(base, plan)
    written = write_folder(base, rehomed, tmp_path / "out", values_with_units(base, rehomed, plan))
    original = load(base.path, torch.float32)
    unedited = logits_of(original)
    with edited_by_hooks(original, base.architecture, plan):
        hooked = logits_of(original)
    assert relative(unedited, hooked) > MARGIN * FP32_END
    # relu through silu or gelu is within 0.28 · 2⁻²⁴ in fp32, below its rounding: one tolerance for all.
    assert relative(logits_of(written), hooked) <= FP32_END


@pytest.mark.parametrize(("model_type", "bias"), [("llama", False), ("gpt2", True), ("opt", True)])
def test_a_tanh_is_within_its_bound_at_the_writers_output(model_type, bias, tmp_path, save_tiny):
    folder = save_tiny(model_type, tmp_path / "base", bias=bias, dtype=torch.float64)
    base = open_model_folder(folder)
    plan = EditPlan((block_edit(0, 32, gate="tanh"),))
    site = plan.sites[0]
    values = unit_values(base, plan.groups_at(site), dtype="F64", approximate=True)
    assert values.count == 2 * 16
    rehomed = rehomed_for(base, plan, "F64")
    written = write_folder(base, rehomed, tmp_path / "out", values_with_units(base, rehomed, plan, dtype="F64"))
    outputs = []
    for model, edits in ((load(folder, torch.float64), plan), (load(written, torch.float64), None)):
        path = base.architecture.module_path(site)
        if edits is None:
            outputs.append(output_of(model, path))
        else:
            outputs.append(output_of(model, path))
            with edited_by_hooks(model, base.architecture, plan):
                outputs.append(output_of(model, path))
    unedited, hooked, units = outputs
    distance = (units - hooked).norm(dim=-1).max()
    assert distance <= values.bound + 1e-12
    assert distance > values.bound / 100
    assert (unedited - hooked).norm(dim=-1).max() > MARGIN * values.bound
    assert "tanh as 16 linear pieces" in values.exactness


@pytest.mark.parametrize(("dtype", "file_dtype"), [(torch.bfloat16, "BF16"), (torch.float16, "F16")])
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "opt"])
@pytest.mark.parametrize("gate", ["identity", "relu"])
def test_units_in_16_bits_lose_what_16_bits_lose(model_type, gate, dtype, file_dtype, tmp_path, save_tiny):
    folder = save_tiny(model_type, tmp_path / "base", dtype=dtype)
    base = open_model_folder(folder)
    plan = EditPlan((block_edit(0, 32, gate=gate),)).scaled(10.0)  # so that it outweighs 100 tolerances of 2⁻⁷
    site = plan.sites[0]
    rehomed = rehomed_for(base, plan, file_dtype)
    tensors = values_with_units(base, rehomed, plan, dtype=file_dtype)
    written = load(write_folder(base, rehomed, tmp_path / "out", tensors), dtype)
    original = load(folder, dtype)
    path = base.architecture.module_path(site)
    unedited = output_of(original, path).double()
    with edited_by_hooks(original, base.architecture, plan):
        hooked = output_of(original, path).double()
    units = output_of(written, path).double()
    bound = unit_values(base, plan.groups_at(site), dtype=file_dtype).bound
    # 2⁻⁷ is the bound for one site in 16 bits, given the same input: layer 0 has it.
    assert (units - hooked).norm() <= 2**-7 * hooked.norm() + bound * hooked.shape[:-1].numel() ** 0.5
    assert (unedited - hooked).norm() > MARGIN * 2**-7 * hooked.norm()


def output_of(model, path):
    seen = []
    handle = model.get_submodule(path).register_forward_hook(lambda _m, _a, output: seen.append(output))
    logits_of(model)
    handle.remove()
    return seen[0]


def computed(values, activation, x):
    """What the units add, by the formula of the MLP, in float64."""
    hidden = ACT2FN[activation](torch.as_tensor(x @ values.rows.T + values.row_biases)).numpy()
    return hidden * (1.0 if values.factors is None else values.factors) @ values.columns.T + values.constant


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gpt_neox", "opt"])
@pytest.mark.parametrize("gate", ["identity", "relu", "tanh"])
@pytest.mark.parametrize("dtype", ["F64", "F32", "BF16", "F16"])
def test_the_stated_bound_holds_and_is_not_generous(model_type, gate, dtype, tiny_folder):
    base = open_model_folder(tiny_folder(model_type))
    plan = EditPlan((block_edit(0, 32, gate=gate, rank=1),))
    groups = plan.groups_at(plan.sites[0])
    values = unit_values(base, groups, dtype=dtype, approximate=True)
    activation = places_of(model_type).mlp.activation_of(base.config)
    # Inputs along R, so that t runs through all that matters, and near 0 finely.
    edit = plan.edits[0]
    t = np.concatenate(
        [np.linspace(-6, 6, 20001), np.linspace(-6, 6, 2001) / 2.0**16, np.linspace(-9, 9, 2001) / 2**24]
    )
    x = (t - edit.offset)[:, None] * edit.right[:, 0] / np.sum(edit.right**2)
    zeros = np.zeros((len(t), 32))
    expected = apply_groups(groups, SiteValues(zeros, None, x), lambda edit: edit.tensors(lambda array: array), None)
    errors = np.linalg.norm(computed(values, activation, x) - expected, axis=1)
    assert errors.max() <= values.bound + 1e-12
    assert (values.bound == 0.0) == (gate == "identity" or (gate == "relu" and activation == "relu"))
    # The errors of many smooth units of one tanh do not all point the same way.
    if values.bound and (dtype in ("F16", "BF16") or gate == "tanh"):
        assert errors.max() > (0.9 if gate == "relu" or dtype != "F16" else 0.2) * values.bound
    assert ("exact" in values.exactness) == (values.bound == 0.0)
    assert values.needs_bias


def test_counts_and_factors(tiny_folder):
    llama, opt = (open_model_folder(tiny_folder(name)) for name in ("llama", "opt"))
    for base, gate, count in ((llama, "identity", 4), (llama, "relu", 2), (llama, "tanh", 32), (opt, "relu", 2)):
        plan = EditPlan((block_edit(0, 32, gate=gate, constant=False),))
        values = unit_values(base, plan.groups_at(plan.sites[0]), dtype="F32", approximate=True)
        assert values.count == count
        assert values.rows.shape == (count, 32)
        assert values.columns.shape == (32, count)
        assert (values.factors is None) == (base is opt)
    # The factor of a gated MLP undoes the scale, so that the columns keep their size.
    plan = EditPlan((block_edit(0, 32, gate="relu", constant=False),))
    values = unit_values(llama, plan.groups_at(plan.sites[0]), dtype="BF16")
    assert set(values.factors) == {2.0**-10}
    np.testing.assert_array_equal(values.columns, 0.7 * plan.edits[0].left)
    assert not values.needs_bias


REFUSED = [
    (lambda edit: replace(edit, gate="tanh"), "a tanh is not exact as hidden units"),
    (lambda edit: replace(edit, positions="last"), "hidden units act at all positions"),
    (lambda edit: replace(edit, reads="output"), "an edit at mlp_write.0 reads its output"),
    (lambda edit: replace(edit, site=Site("attn_write", 0)), "cannot carry an edit at attn_write.0"),
]


@pytest.mark.parametrize(("change", "reason"), REFUSED)
def test_edits_that_no_unit_can_carry_are_refused(change, reason, tiny_folder):
    plan = EditPlan((block_edit(0, 32), change(block_edit(0, 32))))
    groups = [group for site in plan.sites for group in plan.groups_at(site)]
    refusal = unit_values(open_model_folder(tiny_folder("llama")), groups, dtype="F32")
    assert isinstance(refusal, Refusal)
    assert reason in refusal.reason


@pytest.mark.parametrize("model_type", ["phi3", "gemma2", "gemma3_text", "olmo2", "qwen3", "mixtral"])
def test_an_mlp_that_takes_no_units_is_refused(model_type, tiny_folder):
    plan = EditPlan((block_edit(0, 48 if model_type in ("gemma2", "gemma3_text", "qwen3") else 32),))
    refusal = unit_values(open_model_folder(tiny_folder(model_type)), plan.groups_at(plan.sites[0]), dtype="F32")
    assert f"the MLP of a {model_type} model" in refusal.reason


def test_an_activation_without_derivation_is_refused(tmp_path, save_tiny):
    base = open_model_folder(save_tiny("llama", tmp_path / "base", overrides={"hidden_act": "mish"}))
    plan = EditPlan((block_edit(0, 32),))
    assert "activation is 'mish'" in unit_values(base, plan.groups_at(plan.sites[0]), dtype="F32").reason


def test_no_room_is_a_fault_of_ours(tiny_folder):
    base = open_model_folder(tiny_folder("llama"))
    plan = EditPlan((block_edit(0, 32),))
    values = unit_values(base, plan.groups_at(plan.sites[0]), dtype="F32")
    for other in (base, rehome(base, bias_sites=plan.sites)):
        with pytest.raises(ValueError, match="has no room for units 64 to 67"):
            unit_writes(base, other, 0, values)


# Mutations: each is a mistake that someone could make; the comparison above must see every one of them.
MUTATIONS = {
    "biases left out": lambda values: replace(values, row_biases=0 * values.row_biases),
    "columns of the wrong units": lambda values: replace(values, columns=values.columns[:, ::-1]),
    "second of each pair left out": lambda values: replace(values, columns=np.maximum(values.columns, 0)),
    "constant left out": lambda values: replace(values, constant=0 * values.constant),
    "rows on the wrong axis": lambda values: replace(values, rows=values.rows.reshape(32, -1).T.copy()),
    "factor left out": lambda values: replace(values, factors=0 * values.factors),
}


@pytest.mark.parametrize("mutation", [*MUTATIONS, "values at the other end of the axis", "layers mixed up"])
def test_mutations_fail_the_comparison(mutation, tmp_path, tiny_folder):
    base = open_model_folder(tiny_folder("llama"))
    plan = mixed_plan(32, "relu")
    rehomed = rehomed_for(base, plan)
    values = values_with_units(base, rehomed, plan, change=MUTATIONS.get(mutation, lambda values: values))
    if mutation == "values at the other end of the axis":
        name = "model.layers.0.mlp.gate_proj.weight"
        values[name] = np.roll(values[name], 64, axis=0)
    if mutation == "layers mixed up":
        first, second = (f"model.layers.{layer}.mlp.down_proj.weight" for layer in LAYERS)
        values[first][:, 64:], values[second][:, 64:] = values[second][:, 64:].copy(), values[first][:, 64:].copy()
    written = write_folder(base, rehomed, tmp_path / "out", values)
    original = load(base.path, torch.float32)
    with edited_by_hooks(original, base.architecture, plan):
        hooked = logits_of(original)

    assert relative(logits_of(written), hooked) > MARGIN * FP32_END
