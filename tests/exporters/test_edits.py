"""`--as edits`: the plan itself as a result, bit for bit, whatever is in it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from alignez_bake.exporters.edits import EDITS_FILE, EditsExporter
from alignez_bake.exporters.protocol import ExportSettings

from alignez_bake.edit import Edit
from alignez_bake.edit_file import read_edits, write_edits
from alignez_bake.edit_plan import EditPlan
from alignez_bake.errors import BadInputError
from alignez_bake.lowering.lower import lower
from alignez_bake.model_folder import open_model_folder
from alignez_bake.progress import NoProgress
from alignez_bake.report.tables import certificate_table
from alignez_bake.site import Site
from tests.baking import contents
from tests.random_edits import random_edit

EXPORTER = EditsExporter()
SETTINGS = ExportSettings()


@pytest.fixture
def base(tiny_folder):
    return open_model_folder(tiny_folder("llama"))


@pytest.fixture
def plan(base):
    """Every kind of edit that nothing else carries beside one that folds, in both dtypes, with a dial."""
    attention = random_edit(Site("attn_write", 0), 32, 32, constant=True, objective="one")
    return EditPlan(
        (
            attention,
            replace(attention, gate="relu", site=Site("residual", 1), objective=None),
            replace(attention, gate="tanh", positions="last", reads="block"),
            random_edit(Site("embed"), 32, 32),
            Edit(Site("mlp_write", 1), bias=np.ones(32, np.float32), strength=0.1),
        ),
        weights={"one": 0.3},
        base=base.fingerprint,
        provenance={"method": "none", "seed": 3},
    )


def export(base, plan, out):
    lowering = lower(plan, base, EXPORTER)
    EXPORTER.export(base, lowering, out, SETTINGS, NoProgress())
    return lowering


def test_every_edit_is_carried_as_it_is(base, plan, tmp_path):
    lowering = export(base, plan, tmp_path)
    assert {decision.route for decision in lowering.decisions} == {"carry"}
    assert sorted(contents(tmp_path)) == [EDITS_FILE]
    found = read_edits(tmp_path / EDITS_FILE)
    assert all(mine.equals(theirs) for mine, theirs in zip(found.edits, plan.edits, strict=True))
    assert (found.weights, found.base, found.provenance) == (plan.weights, plan.base, plan.provenance)
    certificate = EXPORTER.certify_tensors(base, lowering, tmp_path, NoProgress())
    assert (certificate.verdict, certificate.edits) == ("passed", 5)
    assert json.loads(json.dumps(certificate.to_json()))["edited_tensors"] == 5
    assert certificate_table([certificate]).row_count == 4
    size = (tmp_path / EDITS_FILE).stat().st_size
    assert size <= EXPORTER.bytes_needed(base, lowering, SETTINGS) <= size + 5 * 1024


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda plan: replace(plan, edits=plan.edits[:-1]), "it holds 4 edits, the plan has 5"),
        (lambda plan: replace(plan, edits=(*plan.edits[:-1], plan.edits[-1].scaled(2))), "edit 4, mlp_write"),
        (lambda plan: plan.with_weights({"one": 0.2}), "its dials are"),
        (lambda plan: replace(plan, base=None), "another base"),
    ],
)  # fmt: skip
def test_another_plan_fails(change, reason, base, plan, tmp_path):
    lowering = export(base, plan, tmp_path)
    write_edits(change(plan), tmp_path / EDITS_FILE)
    certificate = EXPORTER.certify_tensors(base, lowering, tmp_path, NoProgress())
    assert certificate.verdict == "failed"
    with pytest.raises(BadInputError, match=reason):
        raise BadInputError("; ".join(certificate.reasons))


def test_what_the_base_does_not_have_is_refused(base, tmp_path):
    lowering = lower(EditPlan((random_edit(Site("attn_write", 7), 32, 32),)), base, EXPORTER)
    with pytest.raises(BadInputError, match=r"layers 0 to 1"):
        EXPORTER.export(base, lowering, tmp_path, SETTINGS, NoProgress())
    assert not contents(tmp_path)


def test_a_dtype_is_refused(base, plan):
    with pytest.raises(BadInputError, match=r"--dtype float32 is not for --as edits"):
        EXPORTER.check(base, lower(plan, base, EXPORTER), ExportSettings(dtype="float32"))


def test_it_runs_nowhere(base, plan, tmp_path):
    with pytest.raises(BadInputError, match=r"bake them first"):
        EXPORTER.reload(base, tmp_path, lower(plan, base, EXPORTER), device="cpu", trust_remote_code=False)
