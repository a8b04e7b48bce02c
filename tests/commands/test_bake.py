"""`bake`: the delivered share, dials, other bases, refusals, and folders that appear whole or not at all."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from alignez_bake.commands.bake import bake
from alignez_bake.edit_file import write_edits
from alignez_bake.edit_plan import EditPlan
from alignez_bake.errors import BadInputError, CheckFailedError
from alignez_bake.model_folder import open_model_folder
from tests.baking import command, contents, nothing_written, plan_for, replace_tensors

TINY_STRENGTH = 1e-3


@pytest.fixture(scope="module")
def bf16_base(tmp_path_factory, save_tiny):
    return save_tiny("llama", tmp_path_factory.mktemp("bf16") / "base", dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def tiny_edit(bf16_base, tmp_path_factory):
    """Edits that bf16's spacing swallows, as a file."""
    path = tmp_path_factory.mktemp("edits") / "edits.safetensors"
    write_edits(plan_for(bf16_base).scaled(TINY_STRENGTH), path)
    return path


def test_an_edit_that_rounding_eats_fails_and_names_ways_out(bf16_base, tiny_edit, tmp_path, capsys):
    out = tmp_path / "out"
    assert command("bake", "--model", bf16_base, "--edits", tiny_edit, "--out", out) == 1
    assert not out.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.failed"]
    certificate = json.loads((tmp_path / "out.failed" / "alignez" / "certificate.json").read_text())
    assert certificate["verdict"] == "failed"
    assert certificate["levels"]["tensors"]["lowest_delivered_share"] < 0.9
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: the certificate is failed: rounding ate the edit")
    assert "larger strength" in last
    assert "--dtype float32" in last
    assert "out.failed" in last


def test_the_same_edit_passes_in_fp32(bf16_base, tiny_edit, tmp_path):
    result = bake(bf16_base, tiny_edit, tmp_path / "out", dtype="float32")
    assert result.verdict == "passed"
    assert result.levels[0].lowest_share == pytest.approx(1.0, abs=1e-3)


def test_an_older_failed_result_is_replaced(bf16_base, tiny_edit, tmp_path):
    for _ in range(2):
        with pytest.raises(CheckFailedError):
            bake(bf16_base, tiny_edit, tmp_path / "out").raise_if_failed()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.failed"]


def test_a_dial_of_zero_is_inconclusive(bf16_base, tmp_path, capsys):
    plan = plan_for(bf16_base)
    named = replace(plan, edits=tuple(replace(edit, objective="helpful") for edit in plan.edits))
    write_edits(named, tmp_path / "edits.safetensors")
    arguments = ("bake", "--model", bf16_base, "--edits", tmp_path / "edits.safetensors", "--out", tmp_path / "out")
    assert command(*arguments, "--objective", "helpful=0") == 1
    assert "inconclusive" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_dials_scale_the_edit(bf16_base, tmp_path):
    plan = plan_for(bf16_base)
    named = replace(plan, edits=tuple(replace(edit, objective="helpful") for edit in plan.edits))
    bake(bf16_base, named, tmp_path / "half", weights={"helpful": 0.5})
    bake(bf16_base, plan.scaled(0.5), tmp_path / "scaled")
    assert (tmp_path / "half" / "model.safetensors").read_bytes() == (
        tmp_path / "scaled" / "model.safetensors"
    ).read_bytes()
    with pytest.raises(BadInputError, match="no edit has the objective 'humor'"):
        bake(bf16_base, named, tmp_path / "other", weights={"humor": 1.0})


def test_a_bias_of_zeros_can_take_a_constant(tmp_path, save_tiny):
    base = save_tiny("gpt2", tmp_path / "base")
    replace_tensors(base, lambda name, values: np.zeros_like(values) if name.endswith("c_proj.bias") else None)
    result = bake(base, plan_for(base, constant=True), tmp_path / "out")
    assert result.verdict == "passed"
    certificate = json.loads((tmp_path / "out" / "alignez" / "certificate.json").read_text())
    changes = [entry["relative_change"] for entry in certificate["levels"]["tensors"]["tensors"]]
    assert changes.count(None) == 2


def test_edits_for_another_base_need_the_flag(bf16_base, tmp_path, save_tiny):
    other = save_tiny("llama", tmp_path / "other", seed=1, dtype=torch.bfloat16)
    plan = plan_for(other)
    with (
        nothing_written(tmp_path),
        pytest.raises(BadInputError, match=r"another base .*one with other weights.*--allow-"),
    ):
        bake(bf16_base, plan, tmp_path / "out")
    assert bake(bf16_base, plan, tmp_path / "out", allow_other_base=True).verdict == "passed"
    assert bake(bf16_base, replace(plan, base=None), tmp_path / "any").verdict == "passed"


@pytest.mark.parametrize(("model_type", "difference"), [("qwen2", "a llama, not a qwen2"), ("llama", "config.json")])
def test_which_other_base_is_said(model_type, difference, bf16_base, tmp_path, save_tiny):
    overrides = {"rms_norm_eps": 1e-3} if model_type == "llama" else None
    other = save_tiny(model_type, tmp_path / "other", dtype=torch.bfloat16, overrides=overrides)
    with pytest.raises(BadInputError, match=difference):
        bake(other, plan_for(bf16_base), tmp_path / "out")


def test_a_second_run_into_the_same_folder_is_kept_out(bf16_base, tmp_path):
    staging = tmp_path / ".out.partial"
    staging.mkdir()
    descriptor = os.open(staging, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with nothing_written(tmp_path), pytest.raises(BadInputError, match="another run is writing"):
            bake(bf16_base, plan_for(bf16_base), tmp_path / "out")
    finally:
        os.close(descriptor)
    (staging / "model.safetensors").write_bytes(b"what a killed run left")
    assert bake(bf16_base, plan_for(bf16_base), tmp_path / "out").verdict == "passed"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize("name", [".out.partial", "out.failed"])
def test_a_base_that_lies_where_a_run_clears_is_safe(name, bf16_base, tmp_path):
    base = shutil.copytree(bf16_base, tmp_path / name)
    (base / "alignez").mkdir()
    with nothing_written(tmp_path), pytest.raises(BadInputError, match="holds the base model"):
        bake(base, plan_for(base).scaled(TINY_STRENGTH), tmp_path / "out")


def test_a_folder_of_others_is_not_taken_for_a_failed_result(bf16_base, tmp_path):
    (tmp_path / "out.failed").mkdir()
    (tmp_path / "out.failed" / "thesis.txt").write_text("mine")
    with nothing_written(tmp_path), pytest.raises(BadInputError, match="in the way"):
        bake(bf16_base, plan_for(bf16_base).scaled(TINY_STRENGTH), tmp_path / "out")


def test_folders_above_the_result_are_made_and_go_again_if_it_fails(bf16_base, tmp_path):
    with nothing_written(tmp_path), pytest.raises(BadInputError, match="overflows BF16"):
        bake(bf16_base, plan_for(bf16_base).scaled(1e39), tmp_path / "new" / "folders" / "out")
    assert bake(bf16_base, plan_for(bf16_base), tmp_path / "new" / "folders" / "out").verdict == "passed"


def test_an_empty_folder_is_taken(bf16_base, tmp_path):
    (tmp_path / "out").mkdir()
    assert bake(bf16_base, plan_for(bf16_base), tmp_path / "out").verdict == "passed"
    assert (tmp_path / "out" / "config.json").is_file()


def test_a_dry_run_decides_and_writes_nothing(bf16_base, tiny_edit, tmp_path, capsys):
    with nothing_written(tmp_path, bf16_base):
        assert (
            command("bake", "--model", bf16_base, "--edits", tiny_edit, "--out", tmp_path / "a" / "b", "--dry-run") == 0
        )
    assert "nothing was written" in capsys.readouterr().out


def test_a_dry_run_has_no_verdict(bf16_base, tiny_edit, tmp_path, capsys):
    result = bake(bf16_base, tiny_edit, tmp_path / "out", dry_run=True)
    assert (result.verdict, result.levels) == (None, ())
    result.raise_if_failed()
    command("bake", "--model", bf16_base, "--edits", tiny_edit, "--out", tmp_path / "out", "--dry-run", "--json")
    printed = json.loads(capsys.readouterr().out)
    assert (printed["verdict"], printed["certificate"]) == (None, {})


def test_each_refused_edit_is_named_with_its_reason(bf16_base, tmp_path):
    plan = plan_for(bf16_base)
    first, second = plan.edits
    mixed = EditPlan((replace(first, gate="relu"), replace(second, positions="last")))
    with nothing_written(tmp_path), pytest.raises(BadInputError) as caught:
        bake(bf16_base, mixed, tmp_path / "out")
    for part in ("2 of 2 edits", "attn_write.0: gate 'relu' is not linear", "attn_write.1: only the last position"):
        assert part in str(caught.value)


def test_the_base_is_never_written_to(bf16_base, tmp_path):
    before = contents(bf16_base)
    bake(bf16_base, plan_for(bf16_base), tmp_path / "out")
    assert contents(bf16_base) == before
    assert open_model_folder(bf16_base).fingerprint == plan_for(bf16_base).base
