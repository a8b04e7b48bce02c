"""The hooks are the reference, so they are compared with the formula written out by hand, in numpy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from alignez_bake.architectures.architecture import architecture_for
from alignez_bake.edit_plan import EditPlan
from alignez_bake.errors import BadInputError
from alignez_bake.lowering.hooks import edited_by_hooks
from alignez_bake.site import LAYERLESS, LEGAL_READS, Site
from tests.random_edits import random_edit
from tests.tiny_models import MODEL_TYPES, VOCABULARY

CASES = [
    ("attn_write", "output"),
    ("attn_write", "input"),
    ("attn_write", "block"),
    ("mlp_write", "output"),
    ("mlp_write", "input"),
    ("mlp_write", "block"),
    ("mlp_gate", "output"),
    ("mlp_gate", "input"),
    ("residual", "output"),
    ("embed", "output"),
    ("lm_head", "output"),
    ("lm_head", "input"),
]
LEGAL_READS_OF = {name: architecture_for({"model_type": name}).legal_reads() for name in MODEL_TYPES}
GATES = {"identity": lambda x: x, "relu": lambda x: np.maximum(x, 0), "tanh": np.tanh}
IDS = torch.randint(3, VOCABULARY, (2, 7), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def live(tiny_model):
    made = {}

    def model(model_type):
        if model_type not in made:
            made[model_type] = tiny_model(model_type, bias=model_type == "gpt2", dtype=torch.float64)
        return made[model_type], architecture_for(made[model_type].config.to_dict())

    return model


def place(architecture, site):
    """Module whose output is the site's."""
    if site.kind == "embed":
        return architecture.embed
    return architecture.layer_path(site.layer) if site.kind == "residual" else architecture.module_path(site)


def observed(model, path):
    """Input and output of one module in a forward pass, [B, T, d] each."""
    seen = []

    def keep(_module, args, kwargs, output):
        read = args[0] if args else kwargs["hidden_states"]
        output = output[0] if isinstance(output, tuple) else output
        seen.append([value.reshape(*IDS.shape, -1).double().numpy() for value in (read, output)])

    handle = model.get_submodule(path).register_forward_hook(keep, with_kwargs=True)
    with torch.no_grad():
        logits = model(IDS, use_cache=False).logits
    handle.remove()
    (found,) = seen
    return *found, logits


def by_hand(edit, y, read):
    term = GATES[edit.gate](read @ edit.right + edit.offset) @ edit.left.T + edit.bias
    if edit.positions == "last":
        term[:, :-1] = 0.0
    return y + edit.strength * term


@pytest.mark.parametrize(
    ("model_type", "kind", "reads"),
    [
        (model_type, kind, reads)
        for model_type in MODEL_TYPES
        for kind, reads in CASES
        if reads in LEGAL_READS_OF[model_type].get(kind, LEGAL_READS[kind])
        and kind not in architecture_for({"model_type": model_type}).absent_sites
    ],
)
def test_a_hooked_site_gives_the_formula(model_type, kind, reads, live):
    model, architecture = live(model_type)
    site = Site(kind, None if kind in LAYERLESS else 0)
    path = place(architecture, site)
    read, output, base_logits = observed(model, path)
    rows = architecture.linear_site(kind).row_slice(output.shape[-1]) if kind in architecture.sites else slice(None)
    y = output[..., rows]
    if reads == "block":
        read = observed(model, architecture.block_path(site))[0]
    elif reads == "output":
        read = y
    plain = random_edit(site, y.shape[-1], read.shape[-1], reads=reads, constant=True)
    for gate, positions, strength in (("identity", "all", 1.0), ("relu", "all", -0.5), ("tanh", "last", 2.0)):
        edit = replace(plain, gate=gate, positions=positions, strength=strength)
        with edited_by_hooks(model, architecture, EditPlan((edit,))):
            _, edited, logits = observed(model, path)
        expected = output.copy()
        expected[..., rows] = by_hand(edit, y, read)
        assert np.linalg.norm(edited - expected) <= 1e-12 * np.linalg.norm(expected)
        assert np.linalg.norm(expected - output) > 1e-2 * np.linalg.norm(output)
        assert not torch.allclose(logits, base_logits, rtol=1e-2)
    assert torch.equal(observed(model, path)[2], base_logits)  # the hooks are gone again


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_edits_of_a_site_apply_in_order_and_objectives_in_parallel(model_type, live):
    model, architecture = live(model_type)
    site = Site("mlp_write", 0)
    read, y, _ = observed(model, place(architecture, site))
    first = random_edit(site, y.shape[-1], y.shape[-1], constant=True, seed=1)
    # A mixture of experts has no one input: there the block's is read, which is that of its module.
    reads = "input" if "input" in LEGAL_READS_OF[model_type]["mlp_write"] else "block"
    second = random_edit(site, y.shape[-1], read.shape[-1], reads=reads, constant=True, seed=2)
    third = random_edit(site, y.shape[-1], y.shape[-1], constant=True, seed=3)
    plan = EditPlan(
        tuple(
            replace(edit, objective=name) for edit, name in ((first, "a"), (second, "a"), (third, "a"), (first, "b"))
        ),
        weights={"a": 0.5, "b": -2.0},
    )
    with edited_by_hooks(model, architecture, plan):
        _, edited, _ = observed(model, place(architecture, site))
    after = by_hand(first, y, y)
    after = by_hand(second, after, read)
    after = by_hand(third, after, after)
    expected = y + 0.5 * (after - y) - 2.0 * (by_hand(first, y, y) - y)
    assert np.linalg.norm(edited - expected) <= 1e-12 * np.linalg.norm(expected)


@pytest.mark.parametrize("model_type", ["llama", "opt"])
def test_last_is_the_last_row_of_each_call_also_with_a_cache(model_type, live):
    """Prompt tokens before the last are untouched, each generated one is edited: AlignEZ's own rule."""
    model, architecture = live(model_type)
    site = Site("mlp_write", 0)
    width = observed(model, place(architecture, site))[1].shape[-1]
    edit = replace(random_edit(site, width, width, constant=True), positions="last")
    seen = []
    handle = None
    with edited_by_hooks(model, architecture, EditPlan((edit,))), torch.no_grad():
        handle = model.get_submodule(place(architecture, site)).register_forward_hook(
            lambda _m, _a, output: seen.append(output.reshape(2, -1, width))
        )
        first = model(IDS[:, :4], use_cache=True)
        model(IDS[:, 4:5], past_key_values=first.past_key_values, use_cache=True)
    handle.remove()
    _, y, _ = observed(model, place(architecture, site))
    prompt, step = (values.numpy() for values in seen)
    assert np.allclose(prompt[:, :3], y[:, :3], rtol=0, atol=1e-12)
    assert np.allclose(prompt[:, 3], by_hand(replace(edit, positions="all"), y, y)[:, 3], rtol=0, atol=1e-12)
    assert not np.allclose(step[:, 0], y[:, 4], atol=1e-3)


def test_positions_can_be_overruled(live):
    model, architecture = live("llama")
    site = Site("attn_write", 0)
    _, y, _ = observed(model, place(architecture, site))
    edit = random_edit(site, y.shape[-1], y.shape[-1], constant=True)
    with edited_by_hooks(model, architecture, EditPlan((edit,)), positions="last"):
        _, edited, _ = observed(model, place(architecture, site))
    assert np.array_equal(edited[:, :-1], y[:, :-1])
    assert not np.allclose(edited[:, -1], y[:, -1])


def test_sixteen_bit_outputs_are_edited_in_fp32_and_rounded_once(tiny_model):
    model = tiny_model("llama", bias=False, dtype=torch.bfloat16)
    architecture = architecture_for(model.config.to_dict())
    site = Site("mlp_write", 0)
    _, y, _ = observed(model, place(architecture, site))
    edit = random_edit(site, y.shape[-1], y.shape[-1], constant=True)
    with edited_by_hooks(model, architecture, EditPlan((edit,))):
        _, edited, _ = observed(model, place(architecture, site))
    expected = by_hand(edit, y, y)
    assert (np.abs(edited - expected) <= 2.0**-8 * np.abs(expected) + 1e-6).all()  # half a spacing of bf16


def test_hooks_go_when_the_body_raises(live):
    model, architecture = live("llama")
    edit = random_edit(Site("attn_write", 1), 32, 32)
    with pytest.raises(RuntimeError, match="body"), edited_by_hooks(model, architecture, EditPlan((edit,))):
        raise RuntimeError("body")
    modules = list(model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules)


def test_the_input_of_a_mixture_of_experts_is_not_taken_for_one_writers(live):
    """The module's input is the block's: as wide as the output, so that no width would tell."""
    model, architecture = live("mixtral")
    edit = random_edit(Site("mlp_write", 0), 32, 32, reads="input")
    with (
        pytest.raises(
            BadInputError, match=r"mlp_write\.0 reads the writer's input, but every expert has one of its own"
        ),
        edited_by_hooks(model, architecture, EditPlan((edit,))),
    ):
        pass
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_layer_that_is_not_there_is_refused(live):
    model, architecture = live("llama")
    plan = EditPlan((random_edit(Site("attn_write", 5), 32, 32),))
    with pytest.raises(ValueError, match="layers 0 to 1"), edited_by_hooks(model, architecture, plan):
        pass
    modules = list(model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules)
