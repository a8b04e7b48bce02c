"""`verify`, `inspect`, `explain` and `compare`: later, elsewhere, and on what others made."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import transformers

from alignez_bake.commands.bake import bake
from alignez_bake.commands.compare import compare
from alignez_bake.commands.explain import explain
from alignez_bake.commands.inspect import inspect
from alignez_bake.commands.verify import verify
from alignez_bake.edit import Edit
from alignez_bake.edit_file import write_edits
from alignez_bake.edit_plan import EditPlan
from alignez_bake.errors import BadInputError, CheckFailedError
from alignez_bake.integrity.folder_files import MANIFEST_FILE
from alignez_bake.site import SITE_KINDS, Site
from tests.baking import flipped, plan_for, replace_tensors


@pytest.fixture(scope="module")
def made(tmp_path_factory, save_tiny):
    """A folder with `base` and a `result` beside it, and the plan. Never change it."""
    folder = tmp_path_factory.mktemp("made")
    base = save_tiny("llama", folder / "base", overrides={"max_position_embeddings": 64})
    plan = plan_for(base)
    plan = replace(plan, edits=tuple(replace(edit, objective="helpful") for edit in plan.edits))
    plan = replace(plan, provenance={"method": "by hand", "prompt_form": {"template": "Q {query} A"}})
    bake(base, plan, folder / "result")
    return folder, plan


@pytest.fixture
def moved(made, tmp_path):
    """A copy of both at another place."""
    shutil.copytree(made[0], tmp_path / "moved")
    return tmp_path / "moved"


def test_verify_finds_the_base_where_it_lay(moved):
    assert verify(moved / "result", level="tensors").verdict == "passed"


def test_verify_takes_the_base_from_elsewhere(moved, tmp_path):
    (moved / "base").rename(tmp_path / "elsewhere")
    with pytest.raises(BadInputError, match=r"not where it was .* --model BASE"):
        verify(moved / "result", level="tensors")
    (moved / "result").rename(tmp_path / "renamed")
    assert verify(tmp_path / "renamed", tmp_path / "elsewhere", level="tensors").verdict == "passed"


def test_verify_refuses_another_base(moved, save_tiny, tmp_path):
    other = save_tiny("llama", tmp_path / "other", seed=1, overrides={"max_position_embeddings": 64})
    with pytest.raises(BadInputError, match=r"is not the base that .* was made from"):
        verify(moved / "result", other, level="tensors")


def test_verify_measures_again_and_does_not_trust_the_certificate(moved):
    replace_tensors(moved / "result", lambda name, values: flipped(values) if "up_proj" in name else None)
    result = verify(moved / "result", level="tensors")
    assert result.verdict == "failed"
    with pytest.raises(CheckFailedError, match="2 tensor"):
        result.raise_if_failed()


def test_verify_runs_the_models_unless_told_otherwise(made):
    result = verify(made[0] / "result")
    assert [level.level for level in result.levels] == ["tensors", "forward"]
    assert result.verdict == "passed"


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda out: shutil.rmtree(out / "alignez"), "not a result of alignez-bake"),
        (lambda out: (out / "alignez" / "alignez.json").unlink(), "not a complete result"),
        (lambda out: (out / "alignez" / "alignez.json").write_text("{"), "not valid JSON"),
        (lambda out: (out / "alignez" / "alignez.json").write_text("[]"), "must be an object"),
        (lambda out: (out / "alignez" / "edits.safetensors").write_bytes(b"x" * 100), "not a safetensors file"),
        (lambda out: (out / "config.json").unlink(), "has no config.json"),
    ],
)
def test_damaged_results_without_a_manifest_are_refused(spoil, reason, moved):
    (moved / "result" / MANIFEST_FILE).unlink(missing_ok=True)
    spoil(moved / "result")
    with pytest.raises(BadInputError, match=reason):
        verify(moved / "result", moved / "base", level="tensors")


@pytest.mark.parametrize("base", [None, 7, {}, {"path": 3}, {"path": "../base", "model_type": "llama"}])
def test_a_record_that_says_no_base_is_refused(base, moved):
    (moved / "result" / MANIFEST_FILE).unlink(missing_ok=True)
    file = moved / "result" / "alignez" / "alignez.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base": base}))
    with pytest.raises(BadInputError, match="--model"):
        verify(moved / "result", level="tensors")


def test_inspect_a_file_and_a_folder(made, tmp_path):
    folder, plan = made
    write_edits(plan, tmp_path / "edits.safetensors")
    of_file, of_folder = inspect(tmp_path / "edits.safetensors"), inspect(folder / "result")
    assert of_file.edits == of_folder.edits
    assert of_file.record is None
    assert of_folder.certificate["verdict"] == "passed"
    assert of_folder.record["base"]["path"] == "../base"
    for summary, edit in zip(of_file.edits, plan.edits, strict=True):
        assert (summary.site, summary.objective, summary.rank) == (str(edit.site), "helpful", 2)
        assert summary.norm == pytest.approx(np.linalg.norm(edit.left @ edit.right.T))
    json.dumps(of_folder.to_json(), allow_nan=False)
    shift = EditPlan((Edit(Site("residual", 0), bias=np.array([3.0, 4.0]), strength=-2.0),))
    write_edits(shift, tmp_path / "shift.safetensors")
    (summary,) = inspect(tmp_path / "shift.safetensors").edits
    assert (summary.rank, summary.norm, summary.has_constant) == (0, 10.0, True)


@pytest.mark.parametrize("name", ["nothing", "base"])
def test_inspect_refuses_what_is_neither(name, made):
    with pytest.raises(BadInputError, match=r"no such file of edits|not a result"):
        inspect(made[0] / name)


def test_explain_a_base(made, tiny_folder):
    result = explain(made[0] / "base")
    assert (result.model_type, result.layers, result.lowering) == ("llama", 2, None)
    assert tuple(site.kind for site in result.sites) == SITE_KINDS
    writer = next(site for site in result.sites if site.kind == "mlp_write")
    assert (writer.module, writer.shape, writer.has_bias) == ("model.layers.0.mlp.down_proj", (32, 64), False)
    gate = next(site for site in explain(tiny_folder("gpt2")).sites if site.kind == "mlp_gate")
    assert not gate.available
    assert gate.module == "gpt2 has no site 'mlp_gate': its MLP has no gate"
    assert [s.post_norm for s in explain(tiny_folder("gemma2")).sites[:2]] == [
        "post_attention_layernorm",
        "post_feedforward_layernorm",
    ]


def test_explain_edits_one_by_one(made, tmp_path):
    folder, plan = made
    first, second = plan.edits
    mixed = EditPlan((first, replace(second, gate="tanh"), Edit(Site("residual", 1), bias=np.ones(32))))
    write_edits(mixed, tmp_path / "edits.safetensors")
    result = explain(folder / "base", tmp_path / "edits.safetensors")
    assert [decision.route for decision in result.lowering.decisions] == ["fold", "insert", "rehome"]
    decisions = json.loads(json.dumps(result.to_json()))["decisions"]
    assert [entry["site"] for entry in decisions] == ["attn_write.0", "attn_write.1", "residual.1"]
    assert "gate 'tanh' is not linear" in decisions[1]["reason"]
    assert "a shift behind a layer is a bias of its MLP writer" in decisions[2]["reason"]
    assert all(entry["exactness"] and entry["cost"] for entry in decisions)


@pytest.mark.skipif(int(transformers.__version__.split(".")[0]) < 5, reason="its module tree is of transformers 5")
def test_explain_shows_both_sorts_of_layers(tmp_path, save_tiny):
    base = save_tiny("qwen3_moe", tmp_path / "base", overrides={"mlp_only_layers": [0]})
    found = [(site.kind, site.available, site.module) for site in explain(base).sites if site.kind != "embed"]
    assert [entry for entry in found if entry[0] == "mlp_write"] == [
        ("mlp_write", True, "model.layers.0.mlp.down_proj"),
        ("mlp_write", True, "model.layers.1.mlp"),
    ]
    gates = [entry[1:] for entry in found if entry[0] == "mlp_gate"]
    assert gates[0] == (True, "model.layers.0.mlp.gate_proj")
    assert gates[1][0] is False
    assert "every expert has a gate of its own" in gates[1][1]
    assert [entry[0] for entry in found].count("attn_write") == 1


def test_explain_refuses_edits_for_another_base_and_unknown_artefacts(made, tmp_path, tiny_folder):
    write_edits(made[1], tmp_path / "edits.safetensors")
    with pytest.raises(BadInputError, match="another base"):
        explain(tiny_folder("llama"), tmp_path / "edits.safetensors")
    assert explain(tiny_folder("llama"), tmp_path / "edits.safetensors", allow_other_base=True).lowering.refused == ()
    with pytest.raises(BadInputError, match="'zip' is unknown"):
        explain(made[0] / "base", artefact="zip")


def test_compare_answers_with_both_models_in_the_form_of_the_result(made):
    result = compare(made[0] / "result", prompts=["one", "two"], max_new_tokens=8)
    again = compare(made[0] / "result", made[0] / "base", prompts=["one", "two"], max_new_tokens=8)
    assert result == again
    assert [answer.prompt for answer in result.answers] == ["one", "two"]
    assert all(answer.base != answer.aligned for answer in result.answers)
    same = compare(made[0] / "result", prompts=["one"], prompt_template="Q {query} A", max_new_tokens=8)
    other = compare(made[0] / "result", prompts=["one"], prompt_template="{query}", max_new_tokens=8)
    assert same.answers == result.answers[:1]
    assert other.answers != result.answers[:1]


def test_compare_any_two_models(made):
    (answer,) = compare(made[0] / "base", made[0] / "base", prompts=["one"], max_new_tokens=4).answers
    assert answer.base == answer.aligned


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"prompts": ["word " * 200]}, "too long"),
        ({"max_new_tokens": 0}, "at least one token"),
        ({"temperature": -1.0}, "temperature"),
        ({"batch_size": 0}, "batch"),
        ({"prompt_template": "no place"}, "must hold it once"),
        ({"device": "tpu"}, "device 'tpu' is not there"),
    ],
)
def test_compare_refuses_what_cannot_be(settings, reason, made):
    with pytest.raises(BadInputError, match=reason):
        compare(made[0] / "result", **{"prompts": ["one"], "max_new_tokens": 4, **settings})
