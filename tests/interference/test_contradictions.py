"""Objectives that contradict each other: by their words before anything runs, by their edits after."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from alignez_bake import align, bake, commands, fit
from alignez_bake.edit import Edit
from alignez_bake.edit_plan import EditPlan
from alignez_bake.errors import BadInputError
from alignez_bake.interference.contradictions import check_contradictions, opposition_notes
from alignez_bake.prompts.objective import Objective
from alignez_bake.site import Site
from tests.baking import plan_for

WARM = Objective("warm", "warm", "cold")
COOL = Objective("cool", "Cold", "warm ")
AGAIN = Objective("friendly", "warm", "cold")
BRIEF = Objective("brief", "brief", "wordy")


@pytest.mark.parametrize(
    ("objectives", "weights", "says"),
    [
        ((WARM, BRIEF, COOL), {}, "objectives 'warm' and 'cool' contradict each other: what is good in one"),
        ((WARM, COOL), {"warm": -1.0, "cool": -0.5}, "their dials -1 and -0.5 have the same sign"),
        ((WARM, AGAIN), {"warm": 1.0, "friendly": -0.5}, "are the same (good 'warm', bad 'cold') and their dials 1"),
    ],
)
def test_words_that_contradict_are_refused(objectives, weights, says):
    with pytest.raises(BadInputError) as caught:
        check_contradictions(objectives, weights)
    assert says in str(caught.value)
    assert "ask for one of them alone" in str(caught.value)


@pytest.mark.parametrize(
    ("objectives", "weights"),
    [
        ((WARM, BRIEF), {"warm": 1.0, "brief": -1.0}),
        ((WARM, COOL), {"warm": 1.0, "cool": -1.0}),
        ((WARM, AGAIN), {"warm": -1.0, "friendly": -0.5}),
        ((WARM, COOL), {"warm": 0.0, "cool": 1.0}),
    ],
)
def test_words_that_agree_at_their_dials_are_not(objectives, weights):
    check_contradictions(objectives, weights)


def test_edits_that_cancel_are_noted_with_the_figure():
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(8, 2)), rng.normal(size=(6, 2))
    one = Edit(Site("attn_write", 0), left=left, right=right, reads="input", objective="warm")
    near = left + 0.1 * rng.normal(size=left.shape)
    other = Edit(Site("attn_write", 0), left=near, right=right, reads="input", objective="kind")
    (note,) = opposition_notes(EditPlan((one, other), weights={"kind": -1.0}))
    assert "objectives 'warm' and 'kind' pull apart at their dials: the cosine of their edits is -1.00" in note
    assert opposition_notes(EditPlan((one, other))) == ()


def test_a_bake_at_dials_that_cancel_says_so(tiny_folder, tmp_path):
    base = tiny_folder("llama")
    edit = plan_for(base).edits[0]
    pair = tuple(replace(edit, objective=name) for name in ("warm", "kind"))
    apart = bake(base, EditPlan(pair, weights={"warm": 1.0, "kind": -0.5}), tmp_path / "apart")
    (note,) = [note for note in apart.notes if "pull apart" in note]
    assert "the cosine of their edits is -1.00, and 33% of the two is left of their sum" in note
    together = bake(base, EditPlan(pair), tmp_path / "together")
    assert not any("pull apart" in note for note in together.notes)


@pytest.fixture
def described(tmp_path):
    path = tmp_path / "own.json"
    path.write_text(json.dumps({each.name: {"good": each.good, "bad": each.bad} for each in (WARM, COOL, BRIEF)}))
    return path


@pytest.mark.parametrize(
    ("objective", "asked", "says"),
    [
        ("warm,cool", {}, "contradict each other"),
        ("warm", {"joint": True}, "--joint fits several objectives together, and there is one, 'warm'"),
        ("warm,brief", {"joint": True, "method": "shift"}, "method 'shift' does not weigh tokens"),
    ],
)
def test_both_commands_refuse_before_a_model_is_loaded(
    objective, asked, says, described, tiny_folder, tmp_path, monkeypatch
):
    def load(*_args, **_settings):
        raise AssertionError("a model was loaded first")

    monkeypatch.setattr(commands.fit, "load_language_model", load)
    monkeypatch.setattr(commands.align, "load_language_model", load)
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"query": "Why?", "side": "good", "answer": " so"}) + "\n")
    with pytest.raises(BadInputError, match=says):
        align(tiny_folder("gpt2"), tmp_path / "out", objective=objective, objectives_file=described, **asked)
    with pytest.raises(BadInputError, match=says):
        fit(
            tiny_folder("gpt2"),
            tmp_path / "pairs.jsonl",
            tmp_path / "edits.safetensors",
            objective=objective,
            objectives_file=described,
            **asked,
        )
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "edits.safetensors").exists()
