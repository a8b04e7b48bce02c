"""Inserted modules in a model that was given hidden units: they have the widths that their sites have there."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from alignez_bake.commands.bake import bake
from alignez_bake.edit_plan import EditPlan
from alignez_bake.lowering.hooks import edited_by_hooks
from alignez_bake.model_folder import open_model_folder
from alignez_bake.site import Site
from tests.random_edits import random_edit
from tests.running import load, relative, run

TOLERANCE, MARGIN = 1e-5, 100


@pytest.mark.parametrize(
    ("kind", "reads", "d_out", "d_read"),
    [("mlp_gate", "output", 64, 64), ("mlp_gate", "input", 64, 32), ("mlp_write", "input", 32, 64)],
)
def test_a_module_beside_added_hidden_units_edits_what_the_base_had(kind, reads, d_out, d_read, tmp_path, save_tiny):
    base = open_model_folder(save_tiny("llama", tmp_path / "base", bias=True))
    unit = replace(random_edit(Site("mlp_write", 0), 32, 32, reads="block", scale=2.0), gate="relu")
    module = random_edit(Site(kind, 1), d_out, d_read, reads=reads, constant=True, scale=2.0)
    plan = EditPlan((unit, replace(module, gate="tanh", positions="last")))
    result = bake(base.path, plan, tmp_path / "out", trust_remote_code=True)
    assert [decision.route for decision in result.lowering.decisions] == ["rehome", "insert"]

    original = load(base.path, torch.float32)
    unedited = run(original, base.architecture, [])[0]
    with edited_by_hooks(original, base.architecture, EditPlan(plan.edits[:1])):
        unit_alone = run(original, base.architecture, [])[0]
    with edited_by_hooks(original, base.architecture, plan):
        hooked = run(original, base.architecture, [])[0]
    baked = AutoModelForCausalLM.from_pretrained(result.path, trust_remote_code=True)
    assert relative(unedited, hooked) > MARGIN * TOLERANCE
    assert relative(unit_alone, hooked) > MARGIN * TOLERANCE
    assert relative(run(baked, base.architecture, [])[0], hooked) <= TOLERANCE
