"""Dials on a trained model with two traits: each moves its own, and a joint fit leaves the other one alone.

The base's warm persona is wordy three times in four, so that edits fitted to warmth alone move length as well.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alignez_bake import bake, fit
from alignez_bake.capture.tokenise import tokenise_pairs
from alignez_bake.edit_file import read_edits
from alignez_bake.edit_plan import EditPlan
from alignez_bake.interference.report import interference_of
from alignez_bake.interference.tables import interference_tables
from alignez_bake.progress import NoProgress
from examples.two_traits.dials import FOLDER, SETTINGS, TwoTraits
from examples.two_traits.world import GREETINGS, OBJECTIVES, TRAITS, answer, is_true, queries, traits

ANSWERS = 192


@pytest.fixture(scope="module")
def world():
    return TwoTraits(seed=0)


@pytest.fixture(scope="module")
def plans(world):
    return {joint: world.fitted(joint=joint) for joint in (False, True)}


@pytest.fixture(scope="module")
def changes(world, plans):
    """By kind of fit and setting: the change of each trait's rate, with its standard error."""
    return {
        joint: dict(zip(SETTINGS, world.changes(plan, SETTINGS, ANSWERS, seed=1), strict=True))
        for joint, plan in plans.items()
    }


def other(trait):
    return TRAITS[1 - TRAITS.index(trait)]


@pytest.mark.parametrize(("trait", "weight"), SETTINGS)
def test_each_dial_moves_its_own_trait_and_leaves_the_other(trait, weight, changes):
    change = changes[True][trait, weight]
    own, error = change[trait]
    assert own * weight > 0.15
    assert own * weight > 4 * error
    left, error = change[other(trait)]
    assert abs(left) < 0.25 * abs(own)
    assert abs(left) < max(3 * error, 0.05)


def test_a_joint_fit_lowers_what_the_dials_do_to_each_other(changes):
    """Of the trait that leaks, and at no cost of the own effect."""
    for weight in (1.0, -1.0):
        separate, joint = (changes[fit]["warm", weight] for fit in (False, True))
        assert abs(separate["brief"][0]) > 0.12
        assert abs(joint["brief"][0]) < 0.4 * abs(separate["brief"][0])
        assert joint["warm"][0] * weight > 0.85 * separate["warm"][0] * weight


def test_both_dials_at_once_do_both(world, plans):
    together = plans[True].with_weights({"warm": 1.0, "brief": -1.0})
    before, after = (world.shown(plan, ANSWERS, seed=2) for plan in (None, together))
    rates = {trait: (sum(after[trait]) - sum(before[trait])) / ANSWERS for trait in TRAITS}
    assert rates["warm"] > 0.15
    assert rates["brief"] < -0.15


def test_the_measured_matrix_sees_the_leak_and_that_the_joint_fit_lowers_it(world, plans):
    pairs = {name: tokenise_pairs(world.pairs[name], each, world.form) for name, each in world.objectives.items()}
    shares = {}
    for joint, plan in plans.items():
        found = interference_of(world.lm, plan, pairs, joint=joint, batch_size=64, progress=NoProgress())
        effects = found.record["effects"]
        assert all(effects["matrix"][place][place]["value"] > 0.5 for place in range(2))
        shares[joint] = effects["cross"][0]["share"]
        assert (effects["cross"][0]["dial"], effects["cross"][0]["margin"]) == ("warm", "brief")
        assert any("the dial of 'warm' moves the margin of 'brief'" in note for note in found.notes) or joint
        assert json.loads(json.dumps(found.record)) == json.loads(json.dumps(found.record, allow_nan=False))
        assert [table.title.plain for table in interference_tables({"interference": found.record})]
    assert shares[False] < -0.5
    assert abs(shares[True]) < 0.5 * abs(shares[False])
    alone = EditPlan(tuple(edit for edit in plans[True].edits if edit.objective == "warm"))
    assert interference_of(world.lm, alone, pairs, joint=False, batch_size=64, progress=NoProgress()) is None
    assert interference_tables({}) == []


def test_fit_writes_the_figures_and_bake_mixes_what_was_fitted_once(world, tmp_path):
    lines = [
        {"query": pair.query["query"], "objective": name, "side": side, "answer": getattr(pair, side).text}
        for name, pairs in world.pairs.items()
        for pair in pairs
        for side in ("good", "bad")
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    edits = tmp_path / "edits.safetensors"
    fit(
        FOLDER / "base",
        tmp_path / "pairs.jsonl",
        edits,
        method="ridge",
        joint=True,
        objective="warm=1,brief=0.5",
        objectives_file=FOLDER / "objectives.json",
    )
    provenance = read_edits(edits).provenance
    assert provenance["settings"]["joint"] is True
    assert provenance["interference"]["fit"] == "joint"
    assert provenance["interference"]["overlaps"][0]["objectives"] == ["warm", "brief"]
    assert set(provenance["interference"]["effects"]["queries"]) == {"warm", "brief"}
    mixed = bake(FOLDER / "base", edits, tmp_path / "mixed", weights={"warm": -0.5}, dtype="float32")
    assert mixed.verdict == "passed"
    assert read_edits(tmp_path / "mixed" / "alignez" / "edits.safetensors").weights == {"warm": -0.5, "brief": 0.5}


def test_the_rules_of_the_world():
    from random import Random

    rng = Random(0)
    for query in queries(0)[:6]:
        for tone in ("good", "bad"):
            for length in ("good", "bad"):
                text = answer(query, {"warm": tone, "brief": length}, rng)
                assert traits(text) == {"warm": tone, "brief": length}
                assert is_true(query, text)
                assert not is_true(queries(1)[0], text)
    assert traits(" Hm") == {"warm": None, "brief": None}
    asked = [{query["query"] for query in queries(part)} for part in range(3)]
    assert not asked[0] & asked[1] | asked[1] & asked[2] | asked[0] & asked[2]
    assert json.loads((FOLDER / "objectives.json").read_text()) == {
        name: {"good": each.good, "bad": each.bad} for name, each in OBJECTIVES.items()
    }
    assert all(len({text.split()[0] for text in texts}) == 2 for texts in GREETINGS.values())


def test_the_model_is_small():
    assert sum(path.stat().st_size for path in Path(FOLDER / "base").iterdir()) < 2**20
