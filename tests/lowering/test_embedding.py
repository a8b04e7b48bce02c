"""Edits of the token embedding: into its rows where they are its own, constants included."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from alignez_bake.edit import Edit
from alignez_bake.edit_plan import EditPlan
from alignez_bake.lowering.hooks import edited_by_hooks
from alignez_bake.lowering.slot import find_slot
from alignez_bake.model_folder import open_model_folder
from alignez_bake.site import Site
from tests.lowering.folding import assert_folds, fold_into, refusal, routes
from tests.random_edits import edit_for_slot, random_edit
from tests.running import load, relative
from tests.tiny_models import COMBINATIONS, MODEL_TYPES, VOCABULARY

EMBED = Site("embed")
TIED = {"tie_word_embeddings": True}
UNTIED = {"tie_word_embeddings": False}
SCALED = ("gemma2", "gemma3_text")
UNSCALED = [name for name in MODEL_TYPES if name not in SCALED]


def chain(base):
    """Two entries of one objective, in order, and a parallel one, each with a constant."""
    slot = find_slot(base, EMBED)
    first, second, third = (edit_for_slot(slot, constant=True, seed=seed) for seed in range(3))
    edits = (
        replace(first, objective="a"),
        replace(second, objective="a", strength=-0.7),
        replace(third, objective="b"),
    )
    return EditPlan(edits, weights={"a": 0.5, "b": 1.5})


@pytest.mark.parametrize("model_type", UNSCALED)
def test_an_edit_with_constants_folds_into_the_rows(model_type, tmp_path, save_tiny):
    """Also where learned positions join behind, and in each row: that of the padding too."""
    base = open_model_folder(save_tiny(model_type, tmp_path / "base", overrides=UNTIED))
    slot = find_slot(base, EMBED)
    width = base.config["n_embd" if model_type == "gpt2" else "hidden_size"]
    assert (slot.kind, slot.d_out, slot.d_in, slot.bias) == ("embedding", width, 320, None)
    plan = chain(base)
    lowering = assert_folds(base, plan, tmp_path / "out")
    assert {decision.reason for decision in lowering.decisions} == {
        "a linear edit of an embedding that is not tied to the head"
    }
    out = open_model_folder(tmp_path / "out").tensors
    assert [n for n in base.tensors if not np.array_equal(base.tensors.read(n), out.read(n))] == [slot.weight]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_the_embedding_module_gives_what_the_hooked_one_does(dtype, tolerance, tmp_path, save_tiny):
    base = open_model_folder(save_tiny("llama", tmp_path / "base", dtype=dtype))
    plan = chain(base)
    fold_into(base, plan, tmp_path / "out")
    original, baked = load(base.path, dtype), load(tmp_path / "out", dtype)
    ids = torch.arange(VOCABULARY)[None]
    before = original.get_input_embeddings()(ids)
    seen = []
    with edited_by_hooks(original, base.architecture, plan):
        handle = original.get_input_embeddings().register_forward_hook(lambda _m, _a, output: seen.append(output))
        original(ids[:, :64])
        handle.remove()
        hooked = original.get_input_embeddings()(ids)
    assert torch.equal(seen[0], hooked[:, :64])
    assert relative(before, hooked) > 100 * tolerance
    assert relative(baked.get_input_embeddings()(ids), hooked) <= tolerance
    assert torch.equal(original.get_output_embeddings().weight, baked.get_output_embeddings().weight)


@pytest.mark.parametrize("model_type", UNSCALED)
@pytest.mark.parametrize("constant", [False, True])
def test_what_is_tied_to_the_head_does_not_fold(model_type, constant, tmp_path, save_tiny):
    bias = (model_type, False) not in COMBINATIONS
    base = open_model_folder(save_tiny(model_type, tmp_path, bias=bias, overrides=TIED))
    plan = EditPlan((edit_for_slot(find_slot(base, EMBED), constant=constant),))
    assert routes(plan, base, code=True) == ["insert"]
    assert routes(plan, base) == ["refuse"]
    reason = refusal(plan, base)
    assert "the embedding is tied to the head" in reason
    assert "--trust-remote-code" in reason


@pytest.mark.parametrize("model_type", ["gpt2", "opt", "smollm3", *SCALED])
def test_a_config_that_does_not_say_is_read_as_the_architecture_does(model_type, tiny_folder):
    base = open_model_folder(tiny_folder(model_type))
    config = {key: value for key, value in base.config.items() if key != "tie_word_embeddings"}
    assert "tied to the head" in find_slot(replace(base, config=config), EMBED).obstacle


@pytest.mark.parametrize("model_type", SCALED)
@pytest.mark.parametrize("overrides", [TIED, UNTIED])
def test_an_embedding_that_scales_does_not_fold(model_type, overrides, tmp_path, save_tiny):
    base = open_model_folder(save_tiny(model_type, tmp_path, overrides=overrides))
    plan = EditPlan((edit_for_slot(find_slot(base, EMBED)),))
    assert routes(plan, base, code=True) == ["insert"]
    assert routes(plan, base) == ["refuse"]
    assert ("tied to the head" if overrides is TIED else "scales what it looks up") in refusal(plan, base)


@pytest.mark.parametrize("changes", [{"gate": "tanh"}, {"positions": "last"}])
def test_what_is_not_linear_does_not_fold(changes, tiny_folder):
    base = open_model_folder(tiny_folder("llama"))
    plan = EditPlan((replace(random_edit(EMBED, 32, 32), **changes),))
    assert routes(plan, base, code=True) == ["insert"]
    assert routes(plan, base) == ["refuse"]


@pytest.mark.parametrize("edit", [random_edit(EMBED, 48, 48), Edit(EMBED, bias=np.ones(31))])
def test_another_models_width_is_refused(edit, tiny_folder):
    base = open_model_folder(tiny_folder("llama"))
    assert routes(EditPlan((edit,)), base, code=True) == ["refuse"]
    assert f"width {edit.d_out}, the site's output has 32" in refusal(EditPlan((edit,)), base)
