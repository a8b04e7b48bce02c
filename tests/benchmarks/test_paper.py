"""The paper's protocol: bad input, a planted answer, and what is said of figures that are not the paper's."""

import json
import shutil
from types import SimpleNamespace

import pytest

from alignez_bake import pipeline
from alignez_bake.commands.align import AlignPlan, AlignResult
from alignez_bake.errors import CheckFailedError
from alignez_bake.evaluation.protocol import BASE, OURS, TUNED, Judgement
from alignez_bake.tuning import tuner
from benchmarks import paper
from benchmarks.paper_tables import NOT_COMPARABLE, Cell, deviations, paper_table
from examples.worlds import WORLDS


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


def test_a_base_that_nothing_helps_counts_as_itself_in_row_and_mean():
    cells = [
        Cell("a", "x", "helpful", net(20.0), net(40.0)),
        Cell("b", "x", "helpful", net(0.0), net(40.0), "none is better beyond noise"),
    ]
    shown = paper_table(cells)
    assert "| b, x, helpful | 0.0 [-5.0, 5.0], the base itself | 40.0 [35.0, 45.0] | 0.0 |" in shown
    assert "| mean of 2 of 2 |  |  | 25.0 |" in shown
    assert "a, x, helpful: " not in shown
    assert shown.endswith("its own answers are counted as ours: none is better beyond noise.")
    assert cells[1].to_json()["nothing_helps"] == "none is better beyond noise"


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
        "--method": "contrastive_decoding",
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
        ({"--method": "auto"}, "10 queries are too few to choose an edit"),
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

    def copy_of_tuned(base, out, *, dry_run, **settings):
        if not dry_run:
            aligned.append((base, settings["objective"], settings["queries"], settings["method"]))
            shutil.copytree(world / "tuned", out)
        return AlignResult(AlignPlan(out, {}, 0, 0, {}, ()))

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
    place = words.index("--method")
    del words[place : place + 2]  # what the command does unless told
    assert paper.main(words) == 0
    printed = capsys.readouterr().out
    (cell,) = json.loads((tmp_path / "out" / "paper.json").read_text())["cells"]
    assert cell["ours"]["value"] == 100.0
    assert cell["tuned"]["value"] == pytest.approx(100 * 4 / 6)
    assert cell["relative_improvement"] == pytest.approx(150.0)
    assert NOT_COMPARABLE in printed
    assert aligned == [(world / "base", "helpful", world / "queries.jsonl", "auto")]

    monkeypatch.setattr(paper, "evaluate", None)  # nothing is run again
    assert paper.main(words) == 0
    assert capsys.readouterr().out == printed
    assert paper.main([*words, "--seed", "1"]) == 2
    assert "holds figures of other models or settings" in capsys.readouterr().err


def test_a_choice_that_finds_nothing_leaves_the_base_which_is_judged_as_ours(
    world, rules, tmp_path, capsys, monkeypatch
):
    """A budget that no edit keeps to, so that it does not hang on what random weights happen to prefer."""
    monkeypatch.setattr(tuner, "BUDGET_SHARE", 1e-12)
    monkeypatch.setattr(pipeline, "ANSWER_TOKENS", 16)
    monkeypatch.setattr(pipeline, "CHARACTERISTIC_TOKENS", 4)
    queries = tmp_path / "queries.jsonl"
    queries.write_text("".join(json.dumps(query) + "\n" for query in WORLDS["museum"].queries("pairs")[:16]))
    out = tmp_path / "out"
    words = arguments(world, out, rules, **{"--method": "auto", "--pair-queries": str(queries)})
    assert paper.main(words) == 0
    printed = capsys.readouterr().out
    (cell,) = json.loads((out / "paper.json").read_text())["cells"]
    kept = json.loads((out / "aligned" / "m-helpful.nothing-helps.json").read_text())
    assert kept["tuning"]["chosen"] is None
    assert cell["nothing_helps"] == kept["reason"]
    assert f"its own answers are counted as ours: {kept['reason']}." in printed
    assert "the base itself" in printed
    # Judged like any other, over the base's answers: they tie with themselves.
    report = json.loads((out / "eval" / "m-held-by_rule" / "eval.json").read_text())
    assert report["paths"][OURS] == report["paths"][BASE] == str(world / "base")
    assert report["drift"][OURS]["kl_from_base"] == 0
    assert cell["ours"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert not (out / "aligned" / "m-helpful").exists()

    monkeypatch.setattr(paper, "align", None)  # the search is not run again
    assert paper.main(words) == 0
    assert capsys.readouterr().out == printed


def test_a_model_that_fails_its_certificate_ends_the_run(world, rules, tmp_path, capsys, monkeypatch):
    def failing():
        raise CheckFailedError("the certificate failed")

    monkeypatch.setattr(paper, "align", lambda *_a, **_k: SimpleNamespace(tuned=None, raise_if_failed=failing))
    assert paper.main(arguments(world, tmp_path / "out", rules)) == CheckFailedError.exit_status
    assert "error: the certificate failed" in capsys.readouterr().err
    assert not (tmp_path / "out" / "paper.md").exists()
