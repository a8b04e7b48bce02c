"""Every kind of artefact goes to a hub and comes back by its name; the base comes from there too."""

from __future__ import annotations

import dataclasses

import pytest

from alignez_bake.edit_file import write_edits
from alignez_bake.hub.upload import push_folder
from tests.baking import plan_for
from tests.hub.conftest import files_of, push, run_python
from tests.hub.local_hub import OWNER

BAKE = """
import sys
from alignez_bake.commands.bake import bake
model, edits, out, artefact = sys.argv[1:5]
print(bake(model, edits, out, artefact=artefact, trust_remote_code="trust" in sys.argv[5:]).verdict)
"""

# Logits of what a snippet loads as `model`, of the hooked base, and of the base.
COMPARE = """
import sys
import torch
from transformers import AutoModelForCausalLM
from alignez_bake.edit_file import read_edits
from alignez_bake.hub.download import base_folder, edits_file
from alignez_bake.lowering.hooks import edited_by_hooks
from alignez_bake.model_folder import open_model_folder

{load}

ids = torch.arange(3, 40)[None]
base = AutoModelForCausalLM.from_pretrained("user/base").eval()
folder = open_model_folder(base_folder("user/base"))
plan = read_edits(edits_file(sys.argv[1]))
with torch.no_grad():
    found = model.eval()(ids).logits
    unedited = AutoModelForCausalLM.from_pretrained("user/base").eval()(ids).logits
    with edited_by_hooks(base, folder.architecture, plan):
        hooked = base(ids).logits
print(float((found - hooked).norm() / hooked.norm()), float((unedited - hooked).norm() / hooked.norm()))
"""

LOADERS = {
    "checkpoint": "model = AutoModelForCausalLM.from_pretrained('user/pushed')",
    "inserted": "model = AutoModelForCausalLM.from_pretrained('user/pushed', trust_remote_code=True)",
    "adapter": (
        "from peft import PeftModel\n"
        "model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained('user/base'), 'user/pushed')"
    ),
    "edits": (
        "from alignez_bake.commands.bake import bake\n"
        "bake('user/base', 'user/pushed', sys.argv[2])\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[2])"
    ),
}


@pytest.mark.parametrize("artefact", LOADERS)
def test_pushed_and_loaded_by_name(artefact, local_hub, hub_base, tmp_path):
    local_hub.store.add("user/base", files_of(hub_base))
    plan = plan_for(hub_base)
    arguments = (artefact,)
    if artefact == "inserted":
        plan = dataclasses.replace(plan, edits=tuple(dataclasses.replace(e, gate="relu") for e in plan.edits))
        arguments = ("checkpoint", "trust")
    write_edits(plan, tmp_path / "edits.safetensors")
    env = local_hub.env(token=OWNER)
    baked = run_python(env, BAKE, "user/base", tmp_path / "edits.safetensors", tmp_path / "out", *arguments)
    assert baked.status == 0, baked.errors
    assert baked.out.split() == ["passed"]
    pushed = push(env, tmp_path / "out", "user/pushed")
    assert pushed.status == 0, pushed.errors

    reader = local_hub.env(home="reader")
    ran = run_python(reader, COMPARE.format(load=LOADERS[artefact]), "user/pushed", tmp_path / "again")
    assert ran.status == 0, ran.errors
    error, moved = map(float, ran.out.split()[-2:])
    assert error <= 1e-5
    assert moved > 100 * 1e-5
    if artefact == "inserted":
        plain = run_python(reader, COMPARE.format(load=LOADERS["checkpoint"]), "user/pushed")
        assert plain.status != 0
        assert "trust_remote_code" in "".join(plain.errors), "never the unedited model in silence"
    if artefact == "edits":
        assert local_hub.downloaded() & {"user/pushed/edits.safetensors", "user/pushed/alignez/edits.safetensors"}
        assert push_folder(tmp_path / "out", "user/pushed", dry_run=True).total_bytes < 100_000
