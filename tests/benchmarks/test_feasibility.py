"""The study on tiny random models: nothing obeys, but every line runs, and it goes on where it stopped."""

import json
from functools import partial

import pytest
import torch

from alignez_bake.preference_pairs.records import PairRecord
from benchmarks import feasibility, feasibility_cases, feasibility_models
from benchmarks.feasibility_cases import STUDIED, Case, Outcome, study_bases, study_cases, swap_sides
from benchmarks.feasibility_tables import real_gain, tables
from examples.worlds import WORLDS
from tests.tiny_models import save_tiny


@pytest.fixture
def demo(tmp_path, monkeypatch):
    """A world in the place of the demo, with models of random weights."""
    folder = tmp_path / "demo"
    save_tiny("llama", folder / "base", seed=0)
    save_tiny("llama", folder / "tuned", seed=1)
    museum = WORLDS["museum"]
    held_out = museum.queries("evaluation")[:16:4]
    for name, records in (("queries", museum.queries("pairs")[:10]), ("heldout", held_out)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "good_documents.jsonl").write_text("")
    (folder / "neutral.txt").write_text("It rained.\n")
    (folder / "objectives.json").write_text(json.dumps({"helpful": {"good": "helpful", "bad": "useless"}}))
    (folder / "measured.json").write_text(json.dumps({"world": "museum", "architecture": "llama"}))
    for module in (feasibility, feasibility_cases, feasibility_models):
        monkeypatch.setattr(module, "DEMO", folder)
    monkeypatch.setattr(feasibility_cases, "ANSWER_TOKENS", 6)
    monkeypatch.setattr(feasibility_cases, "SWAPPED", (50,))
    monkeypatch.setattr(feasibility_cases, "QUERIES", (4,))
    monkeypatch.setattr(feasibility_cases, "ALL_QUERIES", 10)
    return folder


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_study_runs_prints_and_goes_on(demo, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("alignez_bake.pipeline.ANSWER_TOKENS", 16)
    monkeypatch.setattr("alignez_bake.pipeline.CHARACTERISTIC_TOKENS", 8)
    monkeypatch.setattr(feasibility_cases, "assess", partial(feasibility_cases.assess, answers=10))
    out = tmp_path / "out"
    arguments = ["--out", str(out), "--obedience", "50", "--steps", "2", "--seeds", "1", "--samples", "1"]
    feasibility.main(arguments)
    printed = capsys.readouterr().out
    assert "| obedience 50 2 steps | 10 | 0 |" in printed
    assert "refused: too few pairs for objective 'helpful': 4 pairs kept" in printed
    result = json.loads((out / "feasibility.json").read_text())
    cases = {entry["case"]["base"]: entry["outcome"] for entry in result["cases"] if entry["case"]["axis"] == "persona"}
    assert cases.keys() == {"obedience-50-2-steps", "demo", "tuned"}
    assert all(outcome["full"]["prediction"]["verdict"] in ("unclear", "unlikely") for outcome in cases.values())
    assert (out / "feasibility.png").stat().st_size > 5000

    def never(*_arguments):
        raise AssertionError("it was there already")

    monkeypatch.setattr(feasibility_cases.Bench, "measure", never)
    monkeypatch.setattr(feasibility_models, "_train_on", never)
    feasibility.main(arguments)
    assert capsys.readouterr().out == printed
    with pytest.raises(SystemExit, match="other settings"):
        feasibility.main([*arguments, "--samples", "2"])


def test_cases_of_several_axes_are_measured_once():
    cases = study_cases(list(study_bases((50, 90))), 2)
    assert len({case.name for case in cases}) == len(cases)
    assert [case.base for case in cases if case.axis == "persona" and case.seed == 1] == [
        "obedience-50",
        "obedience-90",
        "demo",
        "tuned",
    ]
    assert {case.swapped for case in cases if case.axis == "pairs"} == {10, 25, 50}


def test_swapped_pairs_are_somebodys():
    records = [
        PairRecord({"query": f"q{number}"}, "helpful", side, f"{side} {number}", "c", "p", seed=1)
        for number in range(8)
        for side in ("good", "bad")
    ]
    swapped = swap_sides(records, 0.25, seed=0)
    wrong = [record for record in swapped if not record.answer.startswith(record.side)]
    assert len(wrong) == 4
    assert len({record.query["query"] for record in wrong}) == 2
    assert {(record.seed, record.characteristic) for record in swapped} == {(None, "")}
    assert swap_sides(records, 0.25, seed=0) == swapped != swap_sides(records, 0.25, seed=1)


def outcome(gain, verdict, base, edited):
    estimate = {"value": gain, "low": gain - 0.1, "high": gain + 0.1, "standard_error": 0.05}
    figures = {"prediction": {"gain": estimate, "verdict": verdict}}
    return Outcome(
        full=figures,
        cheap=figures,
        base=base,
        persona=base + gain,
        edited=dict(zip(STUDIED, edited, strict=True)),
        answers=100,
    )


def test_tables_of_planted_outcomes():
    found = {
        Case("persona", "obedience-50", 100, 0, 0): outcome(0.0, "unlikely", 0.5, (0.52, 0.51)),
        Case("persona", "demo", 100, 0, 0): outcome(0.4, "likely", 0.5, (0.9, 0.7)),
        Case("persona", "demo", 100, 0, 1): outcome(0.5, "unclear", 0.4, (0.9, 0.6)),
        Case("persona", "tuned", 100, 0, 0): outcome(0.0, "unlikely", 1.0, (1.0, 1.0)),
        Case("persona", "tuned", 100, 0, 1): outcome(0.0, "unlikely", 0.9, (0.9, 0.9)),
    }
    demo = found[Case("persona", "demo", 100, 0, 0)]
    assert [real_gain(demo, method) for method in STUDIED] == pytest.approx([0.4, 0.2])
    text = "\n".join(tables(found))
    assert (
        "| obedience 50 | 100 | 0 | 0 | -10 to 10 | unlikely | unlikely | 50 | 50 | 52 | 2 | 4 | 51 | 1 | 2 |" in text
    )
    assert "| demo | 100 | 0 | 45 (40 to 50) | 35 to 55 | likely 1, unclear 1 |" in text
    # 0.4 of 0.5 and 0.5 of 0.5; 0.2 of each.
    assert "| 90 (80 to 100) | 65 (60 to 70) | 20 (20 to 20) | 40 (40 to 40) |" in text
    assert "| contrastive_decoding | unlikely | 3 | 1 | 0 | 2 |" in text
    assert "| contrastive_decoding | all | 5 | 1.00 | 0 |" in text
    assert "| ridge | all | 5 | 0.99 | 10 |" in text
