"""`auto` rounds to nearest unless that would lose the edit, and a carried result is checked as strictly as another."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from alignez_bake.certificate.tensors import certify_tensors
from alignez_bake.commands.bake import bake
from alignez_bake.commands.verify import verify
from alignez_bake.errors import BadInputError
from alignez_bake.model_folder import open_model_folder
from tests.baking import lowered, plan_for, replace_tensors

# Relative changes of the weights for which nearest delivers all, half, and so little that noise would drown it.
STRONG, WEAK, DROWNED = 1.0, 0.003, 1e-4
EDITED = "model.layers.0.self_attn.o_proj.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory, save_tiny):
    """A llama in bf16."""
    return save_tiny("llama", tmp_path_factory.mktemp("base") / "base", dtype=torch.bfloat16)


def plan_of(base, strength):
    plan = plan_for(base)
    return plan.scaled(strength)


def baked(base, strength, out, **settings):
    return bake(base, plan_of(base, strength), out, **settings)


def rounding_of(out):
    tensors = json.loads((out / "alignez" / "manifest.json").read_text())["tensors"]
    return {entry["rounding"] for entry in tensors.values()}


def test_what_nearest_delivers_is_rounded_to_nearest(base, tmp_path):
    automatic = baked(base, STRONG, tmp_path / "auto")
    nearest = baked(base, STRONG, tmp_path / "nearest", rounding="nearest")
    assert (automatic.verdict, nearest.verdict, rounding_of(automatic.path)) == ("passed", "passed", {"nearest"})
    files = [(result.path / "model.safetensors").read_bytes() for result in (automatic, nearest)]
    assert files[0] == files[1]


def test_what_nearest_would_lose_is_carried(base, tmp_path):
    lost = baked(base, WEAK, tmp_path / "nearest", rounding="nearest")
    kept = baked(base, WEAK, tmp_path / "auto")
    assert lost.verdict == "failed"
    assert "rounding ate the edit" in lost.reasons[0]
    assert lost.levels[0].lowest_share < 0.9
    assert (kept.verdict, rounding_of(kept.path)) == ("passed", {"carry"})
    assert 0.97 <= kept.levels[0].lowest_share <= 1.03
    assert max(entry.residual for entry in kept.levels[0].deliveries) <= 1.1
    again = verify(kept.path, base, level="tensors")
    assert again.verdict == "passed"
    assert certified(base, kept.path, WEAK).lowest_share == pytest.approx(kept.levels[0].lowest_share, abs=1e-3)


def test_noise_larger_than_the_edit_is_no_way_to_store_it(base, tmp_path):
    result = baked(base, DROWNED, tmp_path / "auto")
    assert (result.verdict, rounding_of(result.path)) == ("failed", {"nearest"})
    assert "--dtype float32" in result.reasons[0]


def test_a_rule_that_was_not_the_recorded_one_is_found(base, tmp_path):
    kept, lost = baked(base, WEAK, tmp_path / "auto"), baked(base, WEAK, tmp_path / "nearest", rounding="nearest")
    mixed = shutil.copytree(kept.path, tmp_path / "mixed")
    shutil.copyfile(lost.path / "model.safetensors", mixed / "model.safetensors")
    assert any("values are not the formula's" in reason for reason in certified(base, mixed, WEAK).reasons)


@pytest.mark.parametrize("strength", [STRONG, WEAK])
def test_values_beyond_the_neighbours_are_found(strength, base, tmp_path):
    result = shutil.copytree(baked(base, strength, tmp_path / "out").path, tmp_path / "mutant")

    def two_steps_up(name, values):
        if name != EDITED:
            return None
        changed = values.copy()
        changed.reshape(-1).view(np.uint16)[7] += 2
        return changed

    replace_tensors(result, two_steps_up)
    assert any(EDITED in reason for reason in certified(base, result, strength).reasons)


def test_unknown_rules_are_refused(base, tmp_path):
    with pytest.raises(BadInputError, match="rounding 'up' is unknown: use auto, nearest, carry"):
        baked(base, STRONG, tmp_path / "out", rounding="up")
    with pytest.raises(BadInputError, match="--as adapter has no use for --rounding"):
        baked(base, STRONG, tmp_path / "out", rounding="carry", artefact="adapter")


def certified(base, result, strength):
    folder = open_model_folder(base)
    return certify_tensors(folder, open_model_folder(result), lowered(folder, plan_of(base, strength)))
