"""`eval` with a classifier, a server or a rule that fails, and how it goes on after an interruption."""

from __future__ import annotations

import json
from itertools import count

import pytest

from alignez_bake.errors import BadInputError
from alignez_bake.evaluation.judge_kinds import JudgeOptions
from tests.baking import contents, nothing_written
from tests.commands.evaluate.evaluating import FEW, few, options
from tests.evaluation.classifiers import save_classifier
from tests.evaluation.judge_server import Reply, judge_server, prefers


def test_a_classifier(made, tmp_path):
    save_classifier(tmp_path / "judge", ("bad", "good"))
    found = few(made, judge=str(tmp_path / "judge"), judge_options=JudgeOptions(label="good"), tuned=None)
    scores = found.figures.models["ours"].mean_score
    assert 0 < scores.low < scores.value < scores.high < 1
    assert found.judge["label"] == "good"


def test_a_server_that_fails_twice(by_rules, made, waits, tmp_path):
    """Its preferences are a rule of ours, so wins must be those of that rule on the very same answers."""
    replies = count()

    def reply(request):
        return Reply(status=503) if next(replies) in (4, 5) else prefers("Start at")(request)

    with judge_server(reply) as server:
        found = few(made, judge=server.url, judge_options=options(), out=tmp_path / "report")
    assert len(waits) == 2
    lines = [json.loads(line) for line in (tmp_path / "report" / "answers.jsonl").read_text("utf-8").splitlines()]
    holds = {name: sum("Start at" in line["answers"][name] for line in lines) for name in ("base", "ours", "tuned")}
    pair = found.figures.pairs["tuned", "base"]
    assert pair.wins - pair.losses == holds["tuned"] - holds["base"]
    assert found.figures.models == {}
    assert found.figures.gap_of == "net_win"
    text = (tmp_path / "report" / "eval.md").read_text("utf-8")
    assert "net wins over the base" in text
    assert server.url.replace("://", "\\://") in text


def test_a_server_that_prefers_a_position_and_talks_at_times(made):
    def reply(request):
        return "I would say A" if len("".join(request.answers)) % 2 else "A"

    with judge_server(reply) as server:
        found = few(made, judge=server.url, judge_options=options())
    for pair in found.figures.pairs.values():
        assert pair.wins == pair.losses == 0
        assert pair.ties + pair.unjudged == FEW
    assert found.figures.order_dependent > 0
    unjudged = sum(pair.unjudged for pair in found.figures.pairs.values())
    assert unjudged > 0
    assert len(found.figures.unreadable) == 2 * unjudged
    assert found.notes[-1] == f"{unjudged} comparisons have no verdict that could be read, and count nowhere"
    assert found.figures.gap.value is None


def test_a_server_that_goes_down_for_good_and_comes_back(made, tmp_path):
    out = tmp_path / "report"
    kept = tmp_path / "report.partial.jsonl"
    replies = count()

    def reply(request):
        return Reply(status=500) if next(replies) >= 15 else prefers("Start at")(request)

    with judge_server(reply) as server:
        with pytest.raises(BadInputError) as caught:
            few(made, judge=server.url, judge_options=options(), out=out)
        message = str(caught.value)
        assert "gave no reply in 3 tries: status 500" in message
        assert f" of {FEW} answers are judged, kept in {kept}: the same command goes on from there" in message
        judged = int(message.split(" of ", maxsplit=1)[0].rsplit(" ", 1)[1])
        assert judged > 0
        assert not out.exists()
        lines = kept.read_text("utf-8").splitlines()
        assert len(lines) == 1 + 3 + judged

        # The same command, with a server that works: what was judged is not asked again.
        before = len(server.requests)
        server.reply = prefers("Start at")
        found = few(made, judge=server.url, judge_options=options(), out=out)
        resumed = len(server.requests) - before
        assert not kept.exists()
        assert resumed < 1 + 6 * (FEW - judged) + 1
        whole = few(made, judge=server.url, judge_options=options(), out=tmp_path / "whole")
    assert found.figures == whole.figures
    assert contents(out) == contents(tmp_path / "whole")


def test_a_resumed_run_samples_nothing_anew(made, tmp_path, monkeypatch):
    from alignez_bake.commands import evaluated_models

    with judge_server(prefers("Start at")) as server:
        url = server.url
        down = count()
        server.reply = lambda request: "A" if next(down) < 1 else Reply(status=401)
        with pytest.raises(BadInputError, match="refuses: status 401"):
            few(made, judge=url, judge_options=options(), out=tmp_path / "report")
        monkeypatch.setattr(evaluated_models, "sampled_answers", None)
        server.reply = prefers("Start at")
        few(made, judge=url, judge_options=options(), out=tmp_path / "report")
    assert (tmp_path / "report" / "eval.json").exists()


def test_a_server_that_is_down_is_found_before_anything_is_sampled(made, tmp_path, monkeypatch):
    from alignez_bake.commands import evaluated_models

    monkeypatch.setattr(evaluated_models, "sampled_answers", None)
    with judge_server(prefers("x")) as server:
        url = server.url
    with nothing_written(tmp_path), pytest.raises(BadInputError, match=r"gave no reply in 3 tries"):
        few(made, judge=url, judge_options=options(), out=tmp_path / "report")


def test_an_interrupted_run_of_other_settings_is_refused(made, tmp_path):
    (tmp_path / "report.partial.jsonl").write_text('{"alignez_eval": 1, "settings": {"seed": 5}}\n')
    with pytest.raises(BadInputError, match=r"begun with other settings .*seed was 5, now 0"):
        few(made, out=tmp_path / "report")


def test_a_judge_that_raises(made, tmp_path):
    (tmp_path / "rules.py").write_text("def judge(query, answer):\n    return query['nothing']\n")
    with pytest.raises(BadInputError, match=r"failed for the query .*KeyError: 'nothing'"):
        few(made, judge=f"{tmp_path / 'rules.py'}:judge", out=tmp_path / "report", tuned=None)
    assert not (tmp_path / "report").exists()
