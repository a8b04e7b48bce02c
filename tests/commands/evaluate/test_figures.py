"""`eval` on the demo model, judged by rules: its figures, its notes, and what it writes."""

from __future__ import annotations

import json

import pytest

from alignez_bake.commands.evaluate import evaluate
from alignez_bake.evaluation import plot
from tests.baking import contents
from tests.commands.evaluate.evaluating import DEMO, FEW, JUDGE, QUERIES, SETTINGS, evaluated, few
from tests.onnx_patch.graphs import dynamo_graph


def test_the_demo_closes_its_gap(by_rules):
    rates = {name: entry.good_rate.value for name, entry in by_rules.figures.models.items()}
    assert 0.3 < rates["base"] < 0.65
    assert rates["ours"] > rates["base"] + 0.2
    assert rates["tuned"] > 0.9
    gap = by_rules.figures.gap
    assert gap.value == pytest.approx(100 * (rates["ours"] - rates["base"]) / (rates["tuned"] - rates["base"]))
    assert 0 < gap.low < gap.value < gap.high
    assert by_rules.figures.pairs["ours", "base"].net_win.low > 0
    assert by_rules.notes == ()


def test_common_noise_makes_pairs_alike(by_rules, made):
    """The edit leaves most answers that were good as they were; of independent draws hardly any would be equal."""
    lines = [json.loads(line) for line in (made / "report" / "answers.jsonl").read_text("utf-8").splitlines()]
    assert len(lines) == QUERIES
    equal = sum(line["answers"]["ours"] == line["answers"]["base"] for line in lines)
    assert equal >= 5
    assert lines[0]["query"]["material"]
    assert lines[0]["scores"].keys() == {"base", "ours", "tuned"}


def test_drift(by_rules):
    drift = by_rules.drift
    assert drift["base"].kl is None
    assert drift["tuned"].kl is None
    assert 0 < drift["ours"].kl < 1
    assert 1 < drift["base"].perplexity < drift["ours"].perplexity * 1.5
    assert by_rules.to_json()["drift"]["ours"] == {
        "perplexity": drift["ours"].perplexity,
        "kl_from_base": drift["ours"].kl,
    }


def test_what_is_written(by_rules, made):
    written = contents(made / "report")
    assert written.keys() == {"eval.json", "eval.md", "eval.svg", "answers.jsonl"}
    report = json.loads(written["eval.json"])
    assert {**report, "dry_run": False, "out": str(made / "report")} == by_rules.to_json()
    text = written["eval.md"].decode()
    assert f"{by_rules.figures.gap.value:.1f} %" in text
    assert "| ours against base |" in text
    assert b"<svg" in written["eval.svg"]
    assert not (made / "report.partial.jsonl").exists()


def test_the_same_call_gives_the_same_bytes(by_rules, made, tmp_path):
    (tmp_path / "x").mkdir()
    evaluated(made, out=tmp_path / "x" / "report")
    assert contents(tmp_path / "x" / "report") == contents(made / "report")


def test_the_tuned_model_closes_all_of_its_own_gap(made):
    """The same model twice: every answer is the same, and so is every resampled ratio."""
    found = evaluate(
        DEMO / "base", DEMO / "tuned", made / "heldout.jsonl", judge=JUDGE, neutral=made / "neutral.txt", **SETTINGS
    ).figures
    assert (found.gap.value, found.gap.low, found.gap.high) == pytest.approx((100, 100, 100))
    both = found.pairs["ours", "tuned"]
    assert (both.wins, both.ties, both.losses) == (0, QUERIES, 0)


def test_an_adapter_answers_as_the_checkpoint_does(by_rules, made):
    found = evaluated(made, "adapter")
    assert found.drift["ours"].kl == pytest.approx(by_rules.drift["ours"].kl, rel=0.05)
    assert found.figures.models["ours"].good_rate.value == pytest.approx(
        by_rules.figures.models["ours"].good_rate.value, abs=0.1
    )


@pytest.mark.sweep
def test_a_graph_of_any_origin(tmp_path, save_tiny):
    """It is the base's own, so greedy answers tie; what torch alone can measure is missing, and said to be."""
    base = save_tiny("llama", tmp_path / "base")
    (tmp_path / "graph").mkdir()
    dynamo_graph(base, tmp_path / "graph", external=False)
    (tmp_path / "queries.txt").write_text("\n".join(f"pot {number}?" for number in range(30)))
    (tmp_path / "rules.py").write_text("def judge(query, answer):\n    return len(answer) / 1000\n")
    (tmp_path / "neutral.txt").write_text("A bell rings.")
    found = evaluate(
        base,
        tmp_path / "graph",
        tmp_path / "queries.txt",
        judge=f"{tmp_path / 'rules.py'}:judge",
        neutral=tmp_path / "neutral.txt",
        temperature=0.0,
        max_new_tokens=8,
    )
    assert found.figures.pairs["ours", "base"].ties == 30
    assert found.drift["base"].perplexity > 1
    assert (found.drift["ours"].perplexity, found.drift["ours"].kl) == (None, None)
    assert found.notes[0].startswith("no perplexity of ours")
    assert found.notes[1].startswith("no KL of ours")


def test_several_samples_and_no_tuned_model(made):
    found = few(made, tuned=None, samples=2)
    assert found.figures.gap is None
    assert found.figures.models.keys() == {"base", "ours"}
    pair = found.figures.pairs["ours", "base"]
    assert pair.wins + pair.ties + pair.losses == 2 * FEW


def test_without_matplotlib_the_report_says_that_it_has_no_picture(made, tmp_path, monkeypatch):
    monkeypatch.setattr(plot, "find_spec", lambda _: None)
    found = few(made, out=tmp_path / "report", tuned=None)
    assert found.notes[1:] == ("no plot: matplotlib is not installed (pip install matplotlib)",)
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == ["answers.jsonl", "eval.json", "eval.md"]
    assert "eval.svg" not in (tmp_path / "report" / "eval.md").read_text("utf-8")


def test_few_queries_and_repeated_ones_are_said(made, tmp_path):
    line = (made / "heldout.jsonl").read_text("utf-8").splitlines()[0]
    (tmp_path / "few.jsonl").write_text(f"{line}\n{line}\n")
    found = evaluate(DEMO / "base", made / "aligned", tmp_path / "few.jsonl", judge=JUDGE, dry_run=True)
    assert found.notes == (
        "1 repeated queries were dropped",
        "with 1 queries the intervals say little: give 30 or more",
    )
