"""`bake` with --linearise and --refit-block: what folds then, what is kept of it, and where that is written."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from alignez_bake.commands import refitting
from alignez_bake.commands.bake import bake
from alignez_bake.commands.verify import verify
from alignez_bake.edit_file import read_edits, write_edits
from alignez_bake.edit_plan import EditPlan
from alignez_bake.errors import BadInputError
from alignez_bake.model_folder import open_model_folder
from tests.baking import command, nothing_written
from tests.commands.small_bakes import certified, edits_at, routes, small_base
from tests.tiny_models import CONTEXT

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A tiny llama with room for the texts that edits are refitted on. Never write into it."""
    overrides = {"max_position_embeddings": CONTEXT}
    return small_base("llama", tmp_path_factory.mktemp("refit") / "base", overrides=overrides)


def gated_plan(base: Path, *, offset: float = 1.0, **fields: object) -> EditPlan:
    """One-sided edits of what one layer's MLP writes, that act at most tokens if `offset` is above 0."""
    edits = edits_at(base, "mlp_write", layers=[1], constant=True, gate="relu", scale=1.0, **fields)
    edits = [replace(edit, offset=np.full(edit.rank, offset), bias=None) for edit in edits]
    return EditPlan(tuple(edits), base=open_model_folder(base).fingerprint, provenance={"method": "by hand"})


WAYS = {"linearised": "linearise", "block": "refit_block"}


@pytest.fixture(scope="module", params=WAYS)
def refitted(request, base, tmp_path_factory):
    """What a refit of one kind gave, and the plan before."""
    plan = gated_plan(base)
    out = tmp_path_factory.mktemp("out") / "out"
    result = bake(base, plan, out, trust_remote_code=False, **{WAYS[request.param]: True})
    return request.param, plan, result


def test_it_needs_no_code_then_and_is_certified(refitted, base):
    kind, plan, result = refitted
    assert result.verdict == "passed"
    assert routes(result) == {"mlp_write.1": "rehome"}
    (before,), (after,) = plan.edits, result.lowering.plan.edits
    assert (after.reads, after.gate) == (("output", "identity") if kind == "linearised" else ("block", "relu"))
    assert not np.array_equal(after.right, before.right)
    assert not list(result.path.rglob("*.py"))
    assert verify(result.path, base, level="tensors").verdict == "passed"
    with pytest.raises(BadInputError, match=r"mlp_write\.1: gate 'relu' is not linear"):
        bake(base, plan, result.path.with_name("other"))


def test_what_is_kept_stands_in_the_certificate_and_the_json(refitted):
    kind, _, result = refitted
    found = json.loads((result.path / "alignez" / "certificate.json").read_text())["refit"]
    assert found == json.loads(json.dumps(result.to_json()["refit"]))
    assert (found["kind"], found["reasons"]) == (kind, [])
    assert 0 < found["kl_original_to_refitted"] < found["kl_original_to_base"]
    (entry,) = found["edits"]
    assert (entry["site"], entry["kind"]) == ("mlp_write.1", kind)
    assert 0 < entry["explained_variance"] < 1
    assert entry["held_out_tokens"] > 100
    if kind == "linearised":  # open at most tokens, so nearly linear; a block's input says less of its output
        assert entry["explained_variance"] > 0.8


def test_the_edits_in_the_result_are_the_refitted_ones_and_say_so(refitted, base, tmp_path):
    kind, plan, result = refitted
    stored = read_edits(result.path / "alignez" / "edits.safetensors")
    assert [edit.equals(other) for edit, other in zip(stored.edits, result.lowering.plan.edits, strict=True)] == [True]
    assert not stored.edits[0].equals(plan.edits[0])
    assert stored.provenance["method"] == "by hand"
    assert stored.provenance["refits"] == json.loads(json.dumps([report.to_json() for report in reports(result)]))
    assert stored.base == open_model_folder(base).fingerprint
    again = bake(base, result.path, tmp_path / "again")
    assert (again.path / "model.safetensors").read_bytes() == (result.path / "model.safetensors").read_bytes()
    assert reports(result)[0].kind == kind


def reports(result):
    assert result.refitted is not None
    return result.refitted.reports


def test_linear_edits_stay_as_they_are_and_everything_runs(base, tmp_path):
    plan = gated_plan(base)
    linear = tuple(edits_at(base, "attn_write", layers=[0]))
    result = certified(
        base, replace(plan, edits=(*linear, *plan.edits)), tmp_path / "out", linearise=True, trust_remote_code=False
    )
    assert routes(result) == {"attn_write.0": "fold", "mlp_write.1": "rehome"}
    assert result.lowering.plan.edits[0].equals(linear[0])
    assert [report.index for report in reports(result)] == [1]


def test_a_refit_that_keeps_nothing_fails(base, tmp_path, monkeypatch, capsys):
    """So few texts that an edit which seldom acts is fitted by chance, and is worse than none on those held out."""
    whole = refitting.refit_sequences
    monkeypatch.setattr(refitting, "refit_sequences", lambda lm, form: [ids[:12] for ids in whole(lm, form)[:8]])
    plan = gated_plan(base, offset=-2.0)
    write_edits(plan, tmp_path / "edits.safetensors")
    arguments = ("bake", "--model", base, "--edits", tmp_path / "edits.safetensors", "--device", "cpu", "--linearise")
    assert command(*arguments, "--out", tmp_path / "out") == 1
    assert not (tmp_path / "out").exists()
    certificate = json.loads((tmp_path / "out.failed" / "alignez" / "certificate.json").read_text())
    assert certificate["verdict"] == "failed"
    assert certificate["levels"]["tensors"]["verdict"] == "passed"
    share = certificate["refit"]["edits"][0]["explained_variance"]
    assert share <= 0
    last = capsys.readouterr().err.splitlines()[-1]
    words = f"the refit keeps nothing of the edit at mlp_write.1: explained variance {share:.3g} on held-out tokens"
    assert words in last
    assert certificate["refit"]["reasons"] == [words]


@pytest.mark.parametrize(
    ("change", "settings", "reason"),
    [
        ({}, {"linearise": True, "refit_block": True}, "two ways for the same edits: choose one"),
        ({"gate": "identity"}, {"linearise": True}, "no edit has a gate, so there is nothing to linearise"),
        ({"positions": "last"}, {"linearise": True}, "acts at the last position alone"),
        ({"positions": "last"}, {"refit_block": True}, "acts at the last position alone"),
        ({}, {"linearise": True, "dtype": "int8"}, "int8"),
        ({}, {"linearise": True, "artefact": "zip"}, "'zip' is unknown"),
    ],
)
def test_what_cannot_be_refitted_is_refused_and_nothing_is_written(change, settings, reason, base, tmp_path):
    plan = gated_plan(base)
    changed = replace(plan, edits=tuple(replace(edit, **change) for edit in plan.edits))
    with nothing_written(tmp_path, base), pytest.raises(BadInputError, match=reason):
        bake(base, changed, tmp_path / "new" / "out", **settings)


def test_a_base_without_room_for_the_longer_texts_is_measured_on_the_others(tmp_path):
    short = small_base("llama", tmp_path / "base", overrides={"max_position_embeddings": 96})
    plan = gated_plan(short)
    result = bake(short, plan, tmp_path / "out", linearise=True)
    assert result.verdict == "passed"
    assert result.refitted is not None
    assert 0 < result.refitted.kl_kept < result.refitted.kl_edit
    tiny = small_base("llama", tmp_path / "tiny", overrides={"max_position_embeddings": 8})
    with nothing_written(tmp_path), pytest.raises(BadInputError, match=r"has 8 positions, which none of the \d+ texts"):
        bake(tiny, gated_plan(tiny), tmp_path / "other", linearise=True)


def test_where_no_constant_has_a_home_the_best_linear_map_is_taken(base, tmp_path):
    """A llama gets biases as a checkpoint, not as an adapter, which leaves it as it is."""
    checkpoint = bake(base, gated_plan(base), tmp_path / "checkpoint", linearise=True)
    adapter = bake(base, gated_plan(base), tmp_path / "adapter", linearise=True, artefact="adapter")
    assert adapter.verdict == "passed"
    assert (reports(checkpoint)[0].constant, reports(adapter)[0].constant) == (True, False)
    assert reports(adapter)[0].explained_variance < reports(checkpoint)[0].explained_variance
    assert adapter.lowering.plan.edits[0].offset is None
