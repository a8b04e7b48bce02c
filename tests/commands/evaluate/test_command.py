"""`eval` from the command line and from Python, and every command of its page."""

from __future__ import annotations

import json
import shlex

import alignez_bake
from alignez_bake.commands.evaluate import evaluate
from tests.baking import command, contents, nothing_written
from tests.commands.evaluate.evaluating import DEMO, JUDGE, ROOT
from tests.evaluation.classifiers import save_classifier
from tests.evaluation.judge_server import judge_server, prefers


def page_commands():
    page = (ROOT / "docs" / "eval.md").read_text(encoding="utf-8")
    return [line.split("  #")[0].strip() for line in page.splitlines() if line.startswith("    alignez-bake ")]


def test_every_command_of_the_page_runs(made, tmp_path, monkeypatch, capsys):
    """With a small result, few queries and short answers in place of the demo's, and a server and a judge of ours."""
    save_classifier(tmp_path / "reward_model")
    save_classifier(tmp_path / "classifier", ("toxic", "harmless"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JUDGE_KEY", "sk-1")
    found = page_commands()
    assert len(found) >= 4
    quickly = ("--max-new-tokens", "30", "--neutral", made / "few_neutral.txt")
    with judge_server(prefers("Start at")) as server:
        for line in found:
            words = line
            for name, value in (
                ("examples/demo/heldout.jsonl", made / "few_heldout.jsonl"),
                ("out/demo/aligned", made / "aligned"),
                ("examples/", f"{ROOT / 'examples'}/"),
                ("http://localhost:8000/v1", server.url),
            ):
                words = words.replace(name, str(value))
            assert command(*shlex.split(words)[1:], *quickly) == 0, capsys.readouterr().err
    assert any("Authorization" in request.headers for request in server.requests)
    shown = capsys.readouterr().out
    assert "Gap closed (good answers):" in shown
    assert "Gap closed (net wins over the base):" in shown
    assert "sk-1" not in shown + "".join(str(value) for value in contents(tmp_path).values())


def test_the_command_line(made, tmp_path, capsys):
    words = [
        "eval", "--model", DEMO / "base", "--aligned", made / "aligned", "--queries", made / "few_heldout.jsonl",
        "--judge", JUDGE, "--neutral", made / "few_neutral.txt", "--max-new-tokens", "30", "--judge-threshold", "-0.75",
    ]  # fmt: skip
    assert command(*words, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["judge"]["good_above"] == -0.75
    assert found["models"]["base"]["good_rate"]["value"] > 0
    assert found["out"] is None
    with nothing_written(tmp_path):
        assert command(*words, "--dry-run", "--out", tmp_path / "report") == 0
    assert "Dry run: nothing was run or written." in capsys.readouterr().out
    assert command(*words[:7]) == 2
    assert "--judge is missing: give a function" in capsys.readouterr().err.splitlines()[-1]


def test_from_python():
    assert alignez_bake.evaluate is evaluate
