"""The bridge to lm-evaluation-harness: refusals, the table, and its figures against our own log-probabilities."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from alignez_bake.errors import BadInputError
from alignez_bake.evaluation import lm_eval_bridge
from alignez_bake.evaluation.lm_eval_bridge import HarnessReport, HarnessRow, harness_report, main
from alignez_bake.language_model.loading import load_language_model
from alignez_bake.language_model.log_probabilities import answer_log_probabilities
from alignez_bake.model_folder import open_model_folder
from alignez_bake.prompts.prompt_form import prompt_form

EXAMPLES = Path(__file__).parents[2] / "examples"
BASE, TUNED = EXAMPLES / "demo" / "base", EXAMPLES / "demo" / "tuned"
CHOICE = EXAMPLES / "harness" / "museum_choice.yaml"
ANSWERS = EXAMPLES / "harness" / "museum_answers.yaml"
HERE = find_spec("lm_eval") is not None


def in_fp32(folder, out):
    lm = load_language_model(open_model_folder(folder), dtype=torch.float32)
    lm.model.save_pretrained(out)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(folder / name, out / name)
    return out


def report(values):
    row = HarnessRow("museum", "acc", 12, True, values, dict.fromkeys(values, 0.25))
    return HarnessReport({name: f"/models/{name}" for name in values}, {"lm_eval": "0"}, (row,))


def test_the_table_shows_errors_and_the_change():
    shown = report({"base": 0.5, "ours": 0.75, "tuned": 1.0}).table().splitlines()
    assert shown[0] == "| task | metric | documents | base | ours | tuned | ours - base |"
    assert (
        shown[2] == "| museum | acc (higher is better) | 12 | 0.5000 ± 0.2500 | 0.7500 ± 0.2500 | 1.0000 ± 0.2500 "
        "| +0.2500 |"
    )


def test_only_figures_that_the_harness_states_become_rows():
    def of(value, error):
        metrics = {"alias": "m", "acc,none": value, "acc_stderr,none": error, "good,strict": 0.5, "sample_len": 3}
        return {
            "results": {"m": metrics},
            "n-samples": {"m": {"original": 9, "effective": 4}},
            "higher_is_better": {"m": {"acc": True}},
        }

    rows = lm_eval_bridge._rows({"base": of(0.25, 0.1), "ours": of(0.5, "N/A")})
    assert [(row.metric, row.documents, row.higher_is_better) for row in rows] == [
        ("acc", 4, True),
        ("good,strict", 4, None),
    ]
    assert rows[0].values == {"base": 0.25, "ours": 0.5}
    assert rows[0].errors == {"base": 0.1, "ours": None}


def test_bad_input_is_refused_by_name(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lm_eval_bridge, "find_spec", lambda name: name != "peft" or None)
    graph = tmp_path / "graph"
    graph.mkdir()
    (graph / "model.onnx").write_bytes(b"")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    cases = [
        ((BASE, graph, [CHOICE]), {}, "holds neither a checkpoint .* nor an adapter"),
        ((BASE, adapter, [CHOICE]), {}, r"is an adapter, which needs peft: pip install 'alignez-bake\[adapter\]'"),
        ((BASE, TUNED, [tmp_path / "no.yaml"]), {}, "no such task: .*no.yaml"),
        ((BASE, TUNED, []), {}, "no task to run"),
        ((BASE, TUNED, [CHOICE]), {"limit": 0}, "limit 0"),
        ((BASE, TUNED, [CHOICE]), {"out": BASE}, "is the base model itself"),
    ]
    for arguments, options, message in cases:
        with pytest.raises(BadInputError, match=message):
            harness_report(*arguments, **options)
    monkeypatch.setattr(lm_eval_bridge, "find_spec", lambda _name: None)
    assert main(["--model", str(BASE), "--aligned", str(TUNED), "--task", str(CHOICE)]) == 2
    assert "error: tasks of lm-evaluation-harness need it: pip install" in capsys.readouterr().err


@pytest.mark.skipif(not HERE, reason="lm-evaluation-harness is not installed: run `make peers`")
def test_its_choices_are_those_of_our_own_log_probabilities(tmp_path, capsys):
    """In 32 bits: the demo's base is so undecided that in bf16 some choices are a matter of rounding."""
    limit = 16
    base, tuned = in_fp32(BASE, tmp_path / "base"), in_fp32(TUNED, tmp_path / "tuned")
    arguments = ["--model", str(base), "--aligned", str(tuned), "--task", str(CHOICE), "--limit", str(limit)]
    assert main([*arguments, "--out", str(tmp_path / "out"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "out" / "lm_eval.json").read_text()) == printed
    assert (tmp_path / "out" / "lm_eval.md").read_text().count(r"museum\_choice") == 1
    rows = {row["metric"]: row for row in printed["rows"]}

    from examples.harness.museum import documents

    asked = documents()["test"].select(range(limit))
    for name, folder in (("base", base), ("ours", tuned)):
        lm = load_language_model(open_model_folder(folder))
        form = prompt_form(lm.tokenizer)
        contexts = [form.context_ids(document["query"], None) for document in asked]
        sums = {
            side: [
                float(log.sum())
                for log in answer_log_probabilities(
                    lm, contexts, [form.answer_ids(document[side]) for document in asked], batch_size=8
                )
            ]
            for side in ("good", "bad")
        }
        right = sum(good > bad for good, bad in zip(sums["good"], sums["bad"], strict=True))
        assert rows["acc"]["models"][name]["value"] == right / limit
        assert rows["acc"]["documents"] == limit
    assert rows["acc"]["models"]["ours"]["value"] > rows["acc"]["models"]["base"]["value"]


@pytest.mark.skipif(not HERE, reason="lm-evaluation-harness is not installed: run `make peers`")
def test_generated_answers_are_judged_by_the_rule_book():
    found = harness_report(BASE, TUNED, [ANSWERS], limit=12, batch_size=12)
    (row,) = found.rows
    assert (row.task, row.metric, row.documents) == ("museum_answers", "good", 12)
    assert row.values["ours"] > row.values["base"]


@pytest.mark.skipif(not HERE, reason="lm-evaluation-harness is not installed: run `make peers`")
def test_a_task_that_is_not_there_is_refused(tmp_path):
    broken = tmp_path / "broken.yaml"
    broken.write_text("task: broken\noutput_type: multiple_choice\ndataset_path: nowhere/at-all\n")
    with pytest.raises(BadInputError, match="the harness cannot run"):
        harness_report(BASE, TUNED, [broken], limit=1)
