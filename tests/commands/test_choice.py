"""Method and strength chosen by the tool: what `align` and `fit` do then, and what they leave."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from alignez_bake import align, bake, commands, fit, pairs
from alignez_bake.cli.align import _tables as align_tables
from alignez_bake.cli.fit import _tables as fit_tables
from alignez_bake.edit_file import read_edits
from alignez_bake.errors import BadInputError, CheckFailedError
from alignez_bake.tuning import tuner
from alignez_bake.tuning.frontier import TuningResult
from tests.running import short_certificates

DEMO = Path(__file__).parents[2] / "examples" / "demo"
QUERIES = 24
RUNGS = ["ridge-0.5", "ridge-1", "ridge-1.5", "ridge-2", "ridge-3", "ridge-4"]


@pytest.fixture(scope="module")
def queries(tmp_path_factory):
    path = tmp_path_factory.mktemp("choice") / "queries.jsonl"
    lines = (DEMO / "queries.jsonl").read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(lines[:QUERIES]) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def chosen(queries, tmp_path_factory):
    """A whole way on the demo's base whose strength was chosen."""
    out = tmp_path_factory.mktemp("choice") / "aligned"
    settings = {"objectives_file": DEMO / "objectives.json", "save_pairs": True, "report": False}
    with short_certificates():
        return align(DEMO / "base", out, queries=queries, method="ridge", strength="auto", layers="2-5", **settings)


def test_the_choice_stands_in_the_result(chosen):
    result = json.loads(json.dumps(chosen.to_json()))
    tuning = TuningResult.from_json(result["tuning"], "result")
    *points, looser = [point.candidate for point in tuning.points]
    assert points == ["base", *RUNGS]
    assert looser in {f"{name}-rank16-penalty0.003" for name in RUNGS}
    assert tuning.queries == 8
    assert tuning.gain.low > 0.05
    assert result["fit"]["provenance"]["tuning"] == result["tuning"]
    assert result["fit"]["provenance"]["settings"]["strength"] == tuning.chosen_point.settings["strength"]
    assert chosen.fitted.filters["helpful"].kept <= QUERIES - 8
    assert result["verdict"] == "passed"
    record = json.loads((chosen.result_path() / "alignez" / "alignez.json").read_text(encoding="utf-8"))
    assert record["provenance"]["tuning"]["chosen"] == tuning.chosen
    assert any("Chosen: ridge-" in entry for entry in align_tables(chosen) if isinstance(entry, str))


def test_no_held_out_query_made_a_pair(chosen, queries):
    written = (chosen.result_path() / "alignez" / "pairs.jsonl").read_text(encoding="utf-8").splitlines()[1:]
    asked = [json.loads(line)["query"] for line in queries.read_text(encoding="utf-8").splitlines()]
    made = {json.loads(line)["query"] for line in written}
    assert len(made) == QUERIES - 8
    assert made < set(asked)


def test_nothing_hidden_is_left(chosen):
    assert [path.name for path in chosen.result_path().parent.iterdir()] == ["aligned"]


def test_another_point_is_baked_without_a_fit(chosen, tmp_path):
    out = chosen.result_path()
    tuning = chosen.tuned.tuning
    other = next(name for name in chosen.tuned.frontier if name != tuning.chosen)
    result = bake(DEMO / "base", out, tmp_path / "other", point=other)
    assert result.verdict == "passed"
    plan = read_edits(tmp_path / "other" / "alignez" / "edits.safetensors")
    strength = float(other.split("-")[1])
    assert {edit.strength for edit in plan.edits} == {strength}
    assert plan.provenance["settings"]["strength"] == strength
    best = read_edits(out / "alignez" / "edits.safetensors")
    np.testing.assert_array_equal(plan.edits[0].right, best.edits[0].right)
    with pytest.raises(BadInputError, match=f"it has .*{other}"):
        bake(DEMO / "base", out, tmp_path / "none", point="ridge-77")
    with pytest.raises(BadInputError, match="these are in memory"):
        bake(DEMO / "base", plan, tmp_path / "none", point=other)
    assert not (tmp_path / "none").exists()


def test_fit_chooses_from_the_same_pairs(chosen, tmp_path):
    """A third of the queries of the pairs judges; candidates lie beside the file, and go with another fit."""
    made = chosen.result_path() / "alignez" / "pairs.jsonl"
    edits = tmp_path / "edits.safetensors"
    result = fit(DEMO / "base", made, edits, method="ridge", strength="auto", layers="2-5")
    assert result.tuned.tuning.queries == 8
    assert result.fitted.filters["helpful"].kept <= 8
    assert sorted(path.stem for path in (tmp_path / "edits.frontier").iterdir()) == sorted(result.tuned.frontier)
    assert "tuning" in result.to_json()
    assert any("hosen: " in entry for entry in fit_tables(result) if isinstance(entry, str))
    fit(DEMO / "base", made, edits, method="ridge", layers="2-5")
    assert [path.name for path in tmp_path.iterdir()] == ["edits.safetensors"]


def test_where_nothing_helps_nothing_is_written(save_tiny, tmp_path):
    """Random weights follow no persona."""
    base = save_tiny("llama", tmp_path / "base")
    (tmp_path / "queries.txt").write_text("\n".join(f"pot {number}?" for number in range(16)))
    settings = {"queries": tmp_path / "queries.txt", "prompt_template": "{query}"}
    result = align(base, tmp_path / "new" / "out", **settings)
    assert result.baked is None
    assert result.to_json()["tuning"]["chosen"] is None
    assert result.to_json()["dry_run"] is False
    with pytest.raises(CheckFailedError, match="no edit is better than the base, so none is baked: "):
        result.raise_if_failed()
    assert any("Nothing chosen: " in entry for entry in align_tables(result) if isinstance(entry, str))
    assert not (tmp_path / "new").exists()

    pairs(base, tmp_path / "pairs.jsonl", **settings)
    fitted = fit(base, tmp_path / "pairs.jsonl", tmp_path / "edits.safetensors")
    with pytest.raises(CheckFailedError, match="no edit is better"):
        fitted.raise_if_failed()
    assert any("Nothing was written" in entry for entry in fit_tables(fitted) if isinstance(entry, str))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "pairs.jsonl", "queries.txt"]


def test_too_few_queries_are_refused_before_the_model_runs(save_tiny, tmp_path):
    base = save_tiny("llama", tmp_path / "base")
    (tmp_path / "queries.txt").write_text("\n".join(f"pot {number}?" for number in range(15)))
    with pytest.raises(BadInputError, match="15 queries are too few to choose an edit: 16 are needed"):
        align(base, tmp_path / "out", queries=tmp_path / "queries.txt", dry_run=True)


def test_an_objective_that_is_turned_off_cannot_judge(save_tiny, tmp_path):
    base = save_tiny("llama", tmp_path / "base")
    with pytest.raises(BadInputError, match="--objective harmless=0 gives the choice of an edit nothing to judge by"):
        align(base, tmp_path / "out", objective="helpful,harmless=0", dry_run=True)
    named = align(base, tmp_path / "out", objective="helpful,harmless=0", method="ridge", dry_run=True)
    assert named.plan.objectives == {"helpful": 1.0, "harmless": 0.0}


def test_queries_that_leave_no_room_to_be_judged_are_refused_before_pairs_are_made(save_tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(commands.align, "write_own_pairs", None)
    base = save_tiny("llama", tmp_path / "base", overrides={"max_position_embeddings": 72})
    (tmp_path / "queries.txt").write_text("\n".join(f"pot {number}?" for number in range(16)))
    with pytest.raises(BadInputError, match="72"):
        align(base, tmp_path / "out", queries=tmp_path / "queries.txt", prompt_template="{query}")


@pytest.mark.parametrize("command", ["align", "fit"])
def test_an_interrupted_search_goes_on_and_a_refused_one_leaves_nothing(command, save_tiny, tmp_path, monkeypatch):
    base = save_tiny("llama", tmp_path / "base")
    (tmp_path / "queries.txt").write_text("\n".join(f"pot {number}?" for number in range(16)))
    settings = {"queries": tmp_path / "queries.txt", "prompt_template": "{query}"}
    if command == "fit":
        pairs(base, tmp_path / "pairs.jsonl", **settings)
    (tmp_path / "made").mkdir()

    def run():
        if command == "fit":
            return fit(base, tmp_path / "pairs.jsonl", tmp_path / "made" / "out")
        return align(base, tmp_path / "made" / "out", **settings)

    def stop(error):
        def plans_of(*_):
            raise error

        monkeypatch.setattr(tuner, "plans_of", plans_of)

    stop(BadInputError("no"))
    with pytest.raises(BadInputError, match="no"):
        run()
    assert not list((tmp_path / "made").iterdir())

    stop(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        run()
    assert (tmp_path / "made" / ".out.tuning.jsonl").read_text().count("\n") == 1 + 1, "the base's loss was measured"
    monkeypatch.undo()
    monkeypatch.setattr(tuner.NeutralDrift, "base_loss", None)  # what the file holds is not measured again
    assert run().tuned.tuning.chosen is None
    assert not list((tmp_path / "made").iterdir())


def test_a_search_of_another_run_is_left_alone(save_tiny, tmp_path):
    """Refused, it is not removed, nor are the pairs that it was made over."""
    base = save_tiny("llama", tmp_path / "base")
    (tmp_path / "queries.txt").write_text("\n".join(f"pot {number}?" for number in range(16)))
    searching = tmp_path / ".out.tuning.jsonl"
    searching.write_text('{"mine": 1}\n')
    with pytest.raises(BadInputError, match="is no file of a search that this tool began"):
        align(base, tmp_path / "out", queries=tmp_path / "queries.txt", prompt_template="{query}")
    assert searching.read_text() == '{"mine": 1}\n'
    assert (tmp_path / ".out.pairs.jsonl").read_text().count("\n") == 1 + 2 * 8
    assert not (tmp_path / "out").exists()


def test_a_dry_run_lists_the_candidates(save_tiny, tmp_path):
    base = save_tiny("llama", tmp_path / "base")
    result = align(base, tmp_path / "out", dry_run=True)
    method = result.to_json()["plan"]["method"]
    assert method["candidates"] == ["contrastive_decoding-1.5", "ridge-2"]
    assert method["finer"]["strengths"]["ridge"] == [2.0, 1.0, 3.0]
    assert result.to_json()["dry_run"] is True
    assert set(result.plan.sites) == {"mlp_write.0", "mlp_write.1", "attn_write.0", "attn_write.1"}
    assert align_tables(result)
