"""The paper's protocol: bad input, a planted answer, and what is said of figures that are not the paper's."""

import json
import shutil

import pytest

from alignez_bake.evaluation.protocol import BASE, OURS, TUNED, Judgement
from benchmarks import paper
from benchmarks.paper_tables import NOT_COMPARABLE, Cell, deviations, paper_table


def net(value, low=None):
    return {"value": value, "low": value - 5 if low is None else low, "high": value + 5}


def test_relative_improvement_is_of_net_wins_and_needs_a_gap():
    cells = [
        Cell("a", "x", "helpful", net(20.0), net(40.0)),
        Cell("a", "y", "helpful", net(-10.0), net(40.0)),
        Cell("b", "x", "helpful", net(5.0), net(3.0)),  # its interval holds 0
        Cell("b", "y", "helpful", None, net(40.0)),
    ]
    assert [cell.relative_improvement for cell in cells] == [50.0, -25.0, None, None]
    shown = paper_table(cells)
    assert "| a, x, helpful | 20.0 [15.0, 25.0] | 40.0 [35.0, 45.0] | 50.0 |" in shown
    assert "| b, x, helpful | 5.0 [0.0, 10.0] | 3.0 [-2.0, 8.0] | no gap |" in shown
    assert "| b, y, helpful | no verdict |" in shown
    assert "| mean of 2 of 4 |  |  | 12.5 |" in shown


def test_what_is_not_as_in_the_paper_is_said():
    whole = deviations(["llama", "mistral", "gpt_neox"], 6, by_server=True, samples=1)
    assert whole == [NOT_COMPARABLE]
    small = deviations(["llama", "llama"], 1, by_server=False, samples=2)
    assert small[0] == NOT_COMPARABLE
    assert [note.split(":")[0].split(" by ")[0] for note in small[1:]] == [
        "Architectures", "Data sets", "Judged", "Answers to each query",
    ]  # fmt: skip


@pytest.fixture
def rules(tmp_path):
    (tmp_path / "rules.py").write_text("def judge(query, answer):\n    return 1.0 if len(answer) % 3 else -1.0\n")
    return f"{tmp_path / 'rules.py'}:judge"


def arguments(world, out, judge, **changed):
    values = {
        "--models": f"m={world / 'base'}",
        "--tuned": f"m={world / 'tuned'}",
        "--datasets": f"held={world / 'heldout.jsonl'}",
        "--judge": judge,
        "--pair-queries": str(world / "queries.jsonl"),
        "--max-new-tokens": "6",
        "--out": str(out),
        **changed,
    }
    return [word for option, value in values.items() for word in (option, *value.split(" ; "))]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"--judge": "nobody"}, "--judge 'nobody' is unknown"),
        ({"--judge": "http://localhost:1/v1"}, "--aspects is missing"),
        ({"--judge": "http://localhost:1/v1", "--aspects": "helpful=more helpful"}, "say with --judge-model which"),
        ({"--aspects": "helpful=more helpful"}, "a judge of rules has no use for --judge-criterion"),
        ({"--datasets": "held=nowhere.jsonl"}, "nowhere.jsonl"),
        ({"--datasets": "held"}, "--datasets 'held': give NAME=VALUE"),
        ({"--datasets": "x/y=f.jsonl"}, "--datasets 'x/y=f.jsonl': give NAME=VALUE"),
        ({"--tuned": "other=somewhere"}, "--models has m and --tuned other"),
        ({"--models": "m=nowhere"}, "nowhere"),
        ({"--models": "m=a ; m=b"}, "--models has 'm' twice"),
        ({"--method": "magic"}, "method 'magic' is unknown"),
        ({"--samples": "0"}, "are at least 1"),
        ({"--pair-queries": "SAME"}, "data set held and the queries of the pairs share 6"),
    ],
    ids=lambda value: None if isinstance(value, str) else " ".join(f"{k}={v}" for k, v in value.items()),
)
def test_bad_input_is_refused_before_anything_runs(world, rules, tmp_path, capsys, changed, message):
    changed = {option: str(world / "heldout.jsonl") if value == "SAME" else value for option, value in changed.items()}
    assert paper.main(arguments(world, tmp_path / "out", rules, **changed)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_the_tuned_one_closes_the_whole_gap(world, rules, tmp_path, capsys, monkeypatch):
    aligned = []

    def copy_of_tuned(base, out, **settings):
        aligned.append((base, settings["objective"], settings["queries"]))
        shutil.copytree(world / "tuned", out)

    monkeypatch.setattr(paper, "align", copy_of_tuned)

    def tuned_wins(_judge, sets):
        return [
            Judgement(
                {BASE: -1.0, OURS: 1.0, TUNED: 1.0},
                {(OURS, BASE): 1, (OURS, TUNED): 0, (TUNED, BASE): 1 if place % 3 else 0},
            )
            for place, _ in enumerate(sets)
        ]

    monkeypatch.setattr("alignez_bake.evaluation.rules_judge.RulesJudge.judge", tuned_wins)
    words = arguments(world, tmp_path / "out", rules)
    assert paper.main(words) == 0
    printed = capsys.readouterr().out
    (cell,) = json.loads((tmp_path / "out" / "paper.json").read_text())["cells"]
    assert cell["ours"]["value"] == 100.0
    assert cell["tuned"]["value"] == pytest.approx(100 * 4 / 6)
    assert cell["relative_improvement"] == pytest.approx(150.0)
    assert NOT_COMPARABLE in printed
    assert aligned == [(world / "base", "helpful", world / "queries.jsonl")]

    monkeypatch.setattr(paper, "evaluate", None)  # nothing is run again
    assert paper.main(words) == 0
    assert capsys.readouterr().out == printed
    assert paper.main([*words, "--seed", "1"]) == 2
    assert "holds figures of other models or settings" in capsys.readouterr().err
