"""What `eval` refuses before anything runs, and its dry run."""

from __future__ import annotations

import json

import pytest

from alignez_bake.commands.evaluate import evaluate
from alignez_bake.errors import BadInputError
from tests.baking import nothing_written
from tests.commands.evaluate.evaluating import DEMO, JUDGE, evaluated


def test_a_dry_run_runs_nothing(made, tmp_path, monkeypatch):
    from alignez_bake.commands import aligned_model

    monkeypatch.setattr(aligned_model, "load_language_model", None)
    with nothing_written(tmp_path):
        found = evaluated(made, out=tmp_path / "report", dry_run=True)
    assert found.dry_run
    assert found.to_json()["out"] == str(tmp_path / "report")
    json.dumps(found.to_json())


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


def test_another_base(made, tiny_folder):
    with pytest.raises(BadInputError, match="is not the base that"):
        evaluate(tiny_folder("llama"), made / "aligned", made / "heldout.jsonl", judge=JUDGE)
