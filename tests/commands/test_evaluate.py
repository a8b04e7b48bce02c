"""`eval` on the demo model: rules, a classifier, a server; what it writes, what it refuses, how it goes on."""

from __future__ import annotations

import json
import shlex
from itertools import count
from pathlib import Path

import pytest

import alignez_bake
from alignez_bake.commands.evaluate import evaluate
from alignez_bake.errors import BadInputError
from alignez_bake.evaluation import chat_client, plot
from alignez_bake.evaluation.judge_kinds import JudgeOptions
from tests.baking import command, contents, nothing_written
from tests.evaluation.classifiers import save_classifier
from tests.evaluation.judge_server import Reply, judge_server, prefers
from tests.onnx_patch.graphs import dynamo_graph

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "examples" / "demo"
JUDGE = f"{ROOT / 'examples' / 'judge_demo.py'}:judge"
QUERIES = 40
FEW = 6
SETTINGS = {"max_new_tokens": 40, "batch_size": 40, "tuned": DEMO / "tuned"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Edits of ridge from few pairs, baked and as an adapter; queries; a file of neutral texts."""
    folder = tmp_path_factory.mktemp("made")
    for name, lines in (("queries.jsonl", 40), ("heldout.jsonl", QUERIES), ("neutral.txt", 20)):
        text = (DEMO / name).read_text(encoding="utf-8").splitlines()[:lines]
        (folder / name).write_text("\n".join(text), encoding="utf-8")
        (folder / f"few_{name}").write_text("\n".join(text[:FEW]), encoding="utf-8")
    base = DEMO / "base"
    alignez_bake.pairs(base, folder / "pairs.jsonl", queries=folder / "queries.jsonl", batch_size=80)
    alignez_bake.fit(base, folder / "pairs.jsonl", folder / "edits.safetensors", method="ridge")
    alignez_bake.bake(base, folder / "edits.safetensors", folder / "aligned")
    alignez_bake.bake(base, folder / "edits.safetensors", folder / "adapter", artefact="adapter")
    alignez_bake.bake(base, folder / "edits.safetensors", folder / "gguf", artefact="gguf")
    return folder


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """Nobody waits for a server."""
    found = []
    monkeypatch.setattr(chat_client.time, "sleep", found.append)
    return found


def evaluated(made, aligned="aligned", judge=JUDGE, **settings):
    asked = {**SETTINGS, "neutral": made / "neutral.txt", **settings}
    return evaluate(DEMO / "base", made / aligned, made / "heldout.jsonl", judge=judge, **asked)


def few(made, **settings):
    """Quickly: few queries, each model with its few answers."""
    asked = {**SETTINGS, "neutral": made / "few_neutral.txt", "judge": JUDGE, **settings}
    return evaluate(DEMO / "base", made / "aligned", made / "few_heldout.jsonl", **asked)


def options(**judge):
    return JudgeOptions(**{"model": "judge", "tries": 3, **judge})


@pytest.fixture(scope="module")
def by_rules(made):
    return evaluated(made, out=made / "report")


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


def test_a_dry_run_runs_nothing(made, tmp_path, monkeypatch):
    from alignez_bake.commands import aligned_model

    monkeypatch.setattr(aligned_model, "load_language_model", None)
    with nothing_written(tmp_path):
        found = evaluated(made, out=tmp_path / "report", dry_run=True)
    assert found.dry_run
    assert found.to_json()["out"] == str(tmp_path / "report")
    json.dumps(found.to_json())


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


@pytest.mark.parametrize(
    ("aligned", "settings", "message"),
    [
        ("aligned", {"judge": None}, "--judge is missing: give a function"),
        ("aligned", {"judge": "nonsense"}, "--judge 'nonsense' is unknown"),
        ("aligned", {"samples": 0}, "--samples 0 must be 1 or more"),
        ("aligned", {"tuned": "nowhere"}, "no such model folder: nowhere"),
        ("aligned", {"neutral": "nowhere"}, "no such file of neutral texts: nowhere"),
        ("aligned", {"prompt_template": "none"}, "must hold it once"),
        ("nothing", {}, "no such result folder"),
        ("gguf", {}, "llama.cpp"),
        ("aligned", {"max_new_tokens": 10_000}, "is too long for"),
    ],
)
def test_bad_input(made, aligned, settings, message, tmp_path):
    with nothing_written(tmp_path), pytest.raises(BadInputError, match=message):
        evaluated(made, aligned, out=tmp_path / "reports" / "first", **settings)


def test_places_for_the_report(made, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    for out, message in (
        (tmp_path / "full", "is not empty"),
        (made / "aligned" / "report", "lies inside the ours model"),
        (DEMO / "base" / "report", "lies inside the base model"),
    ):
        with nothing_written(tmp_path, made / "aligned", DEMO), pytest.raises(BadInputError, match=message):
            evaluated(made, out=out)


def test_a_judge_that_raises(made, tmp_path):
    (tmp_path / "rules.py").write_text("def judge(query, answer):\n    return query['nothing']\n")
    with pytest.raises(BadInputError, match=r"failed for the query .*KeyError: 'nothing'"):
        few(made, judge=f"{tmp_path / 'rules.py'}:judge", out=tmp_path / "report", tuned=None)
    assert not (tmp_path / "report").exists()


def test_another_base(made, tiny_folder):
    with pytest.raises(BadInputError, match="is not the base that"):
        evaluate(tiny_folder("llama"), made / "aligned", made / "heldout.jsonl", judge=JUDGE)


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
