"""Edits of the head: folded where it is a tensor of its own, re-homed where it is tied, and equal to the hooks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from alignez_bake.exporters.checkpoint import CheckpointExporter

from alignez_bake.commands.bake import bake
from alignez_bake.edit_plan import EditPlan
from alignez_bake.errors import BadInputError
from alignez_bake.lowering.hooks import edited_by_hooks
from alignez_bake.lowering.lower import lower
from alignez_bake.lowering.slot import find_slot
from alignez_bake.model_folder import open_model_folder
from alignez_bake.safetensors_io.names import resolve_key
from alignez_bake.site import Site
from tests.baking import rewrite_names
from tests.random_edits import edit_for_slot
from tests.running import load, relative, run
from tests.tiny_models import MODEL_TYPES

HEAD = Site("lm_head")
FP32_SITE, FP32_END, MARGIN = 1e-6, 1e-5, 100


def plan_at_head(base, *readings, **changes):
    slot = find_slot(base, HEAD)
    edits = [edit_for_slot(slot, reads=reads, seed=seed) for seed, reads in enumerate(readings)]
    return EditPlan(tuple(replace(edit, **changes) for edit in edits), base=base.fingerprint)


def check(base, plan, out, routes, **settings):
    """Bake, and compare with the hooked model: its logits, and its head by itself."""
    result = bake(base.path, plan, out, **settings)
    assert result.verdict == "passed"
    assert {decision.route for decision in result.lowering.decisions} == routes
    model = load(base.path, torch.float32)
    before, stream, _ = run(model, base.architecture, [])
    path = base.architecture.head_site.module
    with edited_by_hooks(model, base.architecture, plan):
        wanted, _, seen = run(model, base.architecture, [path])
    return model, before, stream, wanted, seen[path]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_baked_equals_hooked(model_type, tied, tmp_path, save_tiny):
    base = open_model_folder(
        save_tiny(model_type, tmp_path / "base", dtype=torch.float32, overrides={"tie_word_embeddings": tied})
    )
    plan = plan_at_head(base, "input", "output")
    original, before, stream, wanted, (normed, logits) = check(
        base, plan, tmp_path / "out", {"rehome" if tied else "fold"}
    )
    baked = load(tmp_path / "out", torch.float32)
    after, baked_stream, _ = run(baked, base.architecture, [])
    assert relative(before, wanted) > MARGIN * FP32_END
    assert relative(after, wanted) <= FP32_END
    assert torch.equal(baked_stream, stream)  # the embedding is what it was
    head = baked.get_output_embeddings()
    assert relative(head(normed), logits) <= FP32_SITE
    assert relative(original.get_output_embeddings()(normed), logits) > MARGIN * FP32_SITE
    assert baked.config.tie_word_embeddings is False or not tied


@pytest.mark.parametrize("model_type", ["gpt2", "opt"])
def test_files_without_the_base_models_prefix(model_type, tmp_path, save_tiny):
    """Released gpt2 and opt are saved without a head: theirs becomes a tensor beside names that lack the prefix."""
    path = save_tiny(model_type, tmp_path / "base", dtype=torch.float32)
    prefix = {"gpt2": "transformer.", "opt": "model."}[model_type]
    rewrite_names(path, lambda tensors: {name.removeprefix(prefix): values for name, values in tensors.items()})
    base = open_model_folder(path)
    _, before, _, wanted, _ = check(base, plan_at_head(base, "input"), tmp_path / "out", {"rehome"})
    after, _, _ = run(load(tmp_path / "out", torch.float32), base.architecture, [])
    assert relative(before, wanted) > MARGIN * FP32_END
    assert relative(after, wanted) <= FP32_END


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("changes", [{"gate": "tanh"}, {"positions": "last"}, {"bias": np.linspace(-1, 1, 320)}])
def test_what_no_head_can_hold_becomes_a_module(changes, tied, tmp_path, save_tiny):
    base = open_model_folder(
        save_tiny("llama", tmp_path / "base", dtype=torch.float32, overrides={"tie_word_embeddings": tied})
    )
    plan = plan_at_head(base, "input", **changes)
    with pytest.raises(BadInputError, match=r"lm_head: .*--trust-remote-code allows it"):
        bake(base.path, plan, tmp_path / "refused")
    _, before, _, wanted, _ = check(base, plan, tmp_path / "out", {"insert"}, trust_remote_code=True)
    assert relative(before, wanted) > MARGIN * FP32_END


def test_a_tied_head_that_the_files_hold_too_is_refused(tmp_path, save_tiny):
    """What is in the file under its name means nothing to the base, and would to the result."""
    path = save_tiny("llama", tmp_path / "base", overrides={"tie_word_embeddings": True})
    rewrite_names(path, lambda tensors: tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] * 2})
    base = open_model_folder(path)
    lowering = lower(plan_at_head(base, "input"), base, CheckpointExporter())
    assert lowering.decisions[0].route == "refuse"
    assert "its files hold lm_head.weight, which the model does not use" in lowering.decisions[0].reason


def test_the_cost_of_an_untied_head_is_told(tmp_path, save_tiny):
    base = open_model_folder(save_tiny("gemma2", tmp_path / "base"))
    lowering = lower(plan_at_head(base, "input"), base, CheckpointExporter())
    (decision,) = lowering.decisions
    assert decision.route == "rehome"
    assert "tied to the embedding" in decision.reason
    assert "copy of the embedding" in decision.exactness
    embedding = resolve_key(base.tensors, "model.embed_tokens.weight", "model")
    assert f"{np.prod(base.tensors.entry(embedding).shape):,} parameters added" in decision.cost
    assert find_slot(lowering.home, HEAD).weights == ("lm_head.weight",)


@pytest.mark.parametrize("place", ["layer", "reads"])
def test_no_such_edit(place, tiny_folder):
    base = open_model_folder(tiny_folder("llama"))
    if place == "layer":
        with pytest.raises(BadInputError, match="site 'lm_head' has no layer"):
            Site("lm_head", 1)
    else:
        with pytest.raises(BadInputError, match="output or input"):
            plan_at_head(base, "input", reads="block")
