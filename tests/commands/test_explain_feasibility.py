"""`explain --feasibility`: what it prints and refuses. The verdicts themselves: tests/feasibility."""

import json

import pytest

from alignez_bake import explain
from alignez_bake.errors import BadInputError
from tests.baking import command

QUERIES = [f"pot {number}?" for number in range(12)]


@pytest.fixture
def base(tmp_path, save_tiny):
    return save_tiny("llama", tmp_path / "base", overrides={"max_position_embeddings": 96})


@pytest.fixture
def queries(tmp_path):
    path = tmp_path / "queries.txt"
    path.write_text("\n".join(QUERIES))
    return path


def run(capsys, *arguments):
    capsys.readouterr()
    status = command("explain", *arguments)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_it_predicts_and_writes_nothing(base, queries, capsys, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    how = ("--model", base, "--feasibility", "--queries", queries, "--prompt-template", "{query}", "--device", "cpu")
    status, out, _ = run(capsys, *how, "--json")
    assert status == 0
    values = json.loads(out)["feasibility"]
    assert "characteristics have at most" in values["note"]
    found = values["helpful"]
    assert found["prediction"]["verdict"] in ("unclear", "unlikely")
    assert found["prediction"]["advice"]
    assert found["pairs"]["kept"] + found["pairs"]["empty"] + found["pairs"]["equal"] == len(QUERIES)
    assert len(found["layers"]) == json.loads(out)["layers"]
    assert sorted(tmp_path.rglob("*")) == before
    status, text, _ = run(capsys, *how)
    assert status == 0
    assert found["prediction"]["verdict"] in text
    assert "Advice: " in text


def test_pairs_that_are_there(base, queries, capsys, tmp_path):
    pairs = tmp_path / "pairs.jsonl"
    how = ("--model", base, "--device", "cpu")
    made = ("--prompt-template", "{query}", "--objective", "harmless", "--queries", queries)
    assert command("pairs", *how, "--out", pairs, *made) == 0
    status, out, _ = run(capsys, *how, "--feasibility", "--pairs", pairs, "--json")
    assert status == 0
    # Objective and prompt form are those of the file.
    assert json.loads(out)["feasibility"].keys() == {"note", "harmless"}
    status, _, errors = run(capsys, *how, "--feasibility", "--pairs", pairs, "--prompt-template", "Q: {query}")
    assert (status, "another prompt form" in errors) == (2, True)
    status, _, errors = run(capsys, *how, "--feasibility", "--pairs", pairs, "--objective", "humor")
    assert (status, "too few pairs for objective 'humor': 0 pairs kept" in errors) == (2, True)
    pairs.write_text(json.dumps({"query": "Why?", "side": "good", "answer": " So.", "objective": "odd"}) + "\n")
    status, _, errors = run(capsys, *how, "--feasibility", "--pairs", pairs)
    assert (status, "objective 'odd'" in errors, "--objectives-file" in errors) == (2, True, True)


def test_own_pairs_without_an_objective(base, capsys, tmp_path):
    pairs = tmp_path / "mine.jsonl"
    lines = [
        json.dumps({"query": query, "side": side, "answer": f" {side} {query}"})
        for query in QUERIES
        for side in ("good", "bad")
    ]
    pairs.write_text("\n".join(lines))
    found = explain(base, feasibility=True, pairs=pairs, objective="humor=-1", prompt_template="{query}").feasibility
    assert found.objectives["humor"].wanted == "bad"
    assert not found.objectives["humor"].pairs.own


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"queries": "q.txt"}, "--queries is for --feasibility"),
        ({"objectives_file": "o.json"}, "--objectives-file is for --feasibility"),
        ({"feasibility": True, "queries": "q.txt", "pairs": "p.jsonl"}, "leave one out"),
        ({"feasibility": True, "queries": "q.txt"}, "no such file of queries"),
        ({"feasibility": True, "pairs": "p.jsonl"}, "no such file of pairs"),
        ({"feasibility": True, "objective": "odd"}, "unknown objective 'odd'"),
    ],
)
def test_what_is_refused(base, settings, message):
    with pytest.raises(BadInputError, match=message):
        explain(base, **settings)


def test_without_it_nothing_is_run(base):
    found = explain(base)
    assert found.feasibility is None
    assert found.to_json()["feasibility"] is None
