"""The README is true: each command in it runs, in order, on a tiny model."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from alignez_bake import pipeline
from alignez_bake.cli.main import build_app
from alignez_bake.cli.shell import run

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
_THINGS = ("kettle", "spoon", "lamp", "clock", "chair", "table", "door", "roof", "boat", "bell")
QUERIES = [f"How do I clean a {thing}?" for thing in _THINGS]


def commands() -> list[str]:
    """Every command of the tool in the README but those of the demo, which `make demo` runs."""
    lines = [line.split("  #")[0].strip() for line in README.splitlines() if line.startswith("    alignez-bake ")]
    return [line for line in lines if "examples/demo" not in line]


def test_every_command_of_the_readme_runs(tmp_path, save_tiny, monkeypatch, capsys):
    # Few positions make the tiny model quick: texts and certificate are cut to what it has room for.
    save_tiny("llama", tmp_path / "base", dtype=torch.float32, overrides={"max_position_embeddings": 260})
    (tmp_path / "my_queries.txt").write_text("\n".join(QUERIES), encoding="utf-8")
    (tmp_path / "own.json").write_text(json.dumps({"truthful": {"good": "truthful", "bad": "deceptive"}}))
    monkeypatch.chdir(tmp_path)
    # The same way with fewer of the shipped queries: a tenth of the time.
    shipped = pipeline.shipped_queries
    monkeypatch.setattr(pipeline, "shipped_queries", lambda objective: shipped(objective)[:24])
    found = commands()
    assert len(found) >= 11
    for command in found:
        words = shlex.split(re.sub(r"\bBASE\b", "base", command))[1:]
        if "--out" in words and "aligned" in words:
            shutil.rmtree("aligned", ignore_errors=True)
        status = run(build_app(), words)
        assert status == 0, f"{command}: {capsys.readouterr().err}"


def test_the_first_command_is_the_whole_way():
    assert commands()[0] == "alignez-bake --model base --out aligned"


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_links_of_the_readme_lead_somewhere(target):
    assert (ROOT / target).exists()


def test_what_the_readme_calls_today_is_there_and_the_rest_is_refused(tmp_path, tiny_folder):
    from alignez_bake.exporters.registry import EXPORTERS, NOT_YET_AVAILABLE

    from alignez_bake.architectures.architecture import known_model_types
    from alignez_bake.methods.registry import METHODS
    from alignez_bake.methods.registry import NOT_YET_AVAILABLE as LATER_METHODS

    rows = {row.split("|")[1].strip(): row.split("|")[2:4] for row in README.splitlines() if row.startswith("| ")}
    assert all(name in rows["architectures"][0] for name in known_model_types())
    assert all(f"`{name}`" in rows["methods"][0] for name in METHODS)
    assert all(f"`{name}`" in rows["methods"][1] for name in LATER_METHODS)
    assert all(f"`{name}`" in rows["result"][0] for name in EXPORTERS)
    assert {"adapter", "gguf", "onnx"} <= set(NOT_YET_AVAILABLE)


def test_makefile_runs_the_pip_form_of_the_readme():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for words in ('--editable ".[test,benchmarks]"', "examples/demo/queries.jsonl", "-m examples.before_and_after"):
        assert words in makefile
    for words in ('-e ".[test,benchmarks]"', "examples/demo/queries.jsonl", "-m examples.before_and_after"):
        assert words in README
    assert "make test" in (ROOT / ".ci" / "run").read_text()
    assert "make demo" in (ROOT / ".ci" / "run").read_text()
