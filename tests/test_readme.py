"""README and docs are true: each command runs, each link leads somewhere, what is said to be there is there."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from alignez_bake.exporters.registry import EXPORTERS

import alignez_bake
from alignez_bake import pipeline
from alignez_bake.architectures.architecture import known_model_types
from alignez_bake.cli.main import build_app
from alignez_bake.cli.shell import run
from alignez_bake.methods.registry import METHODS
from alignez_bake.tuning import offered
from alignez_bake.tuning.offered import Rung
from tests.hub.conftest import files_of
from tests.hub.local_hub import OWNER, running_hub
from tests.onnx_patch.graphs import torchscript_graph

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DEMO = ROOT / "examples" / "demo"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
_THINGS = ("kettle", "spoon", "lamp", "clock", "chair", "table", "door", "roof", "boat", "bell")
QUERIES = [f"How do I clean a {thing}?" for thing in _THINGS]


def commands(text: str) -> list[str]:
    """Every command of the tool on a page but those of the demo, which `make demo` runs."""
    lines = [line.split("  #")[0].strip() for line in text.splitlines() if line.startswith("    alignez-bake ")]
    return [line for line in lines if "examples/demo" not in line]


def words_of(command: str, base: str) -> list[str]:
    """What follows the tool's name; the folder that it writes is made free.

    A fit that names no method gets one: random weights follow no persona, so a search would find nothing to bake.
    """
    words = shlex.split(re.sub(r"\bBASE\b", base, command))[1:]
    if words[0] in {"--model", "fit"} and not {"--method", "--kl-budget"} & set(words):
        words += ["--method", "ridge"]
    if "--out" in words:
        shutil.rmtree(words[words.index("--out") + 1], ignore_errors=True)
    return words


def demo_queries(path: Path, count: int) -> Path:
    """The first queries of the demo, which gated edits need: a model of random weights has no sides to tell apart."""
    lines = (DEMO / "queries.jsonl").read_text(encoding="utf-8").splitlines()[:count]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def short_demo(path: Path) -> Path:
    """The demo's base with room for fewer tokens, to which texts and certificates are cut: a third of the time."""
    shutil.copytree(DEMO / "base", path)
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    (path / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 200}), encoding="utf-8")
    return path


@pytest.mark.usefixtures("short_certificates")
def test_every_command_of_the_readme_runs(tmp_path, save_tiny, monkeypatch, capsys):
    # Few positions make the tiny model quick: texts and certificate are cut to what it has room for.
    base = save_tiny("llama", tmp_path / "base", dtype=torch.float32, overrides={"max_position_embeddings": 260})
    short_demo(tmp_path / "demo")
    (tmp_path / "my_queries.txt").write_text("\n".join(QUERIES), encoding="utf-8")
    (tmp_path / "rules.py").write_text("def judge(query, answer):\n    return 1.0 if len(answer) < 80 else -1.0\n")
    (tmp_path / "own.json").write_text(json.dumps({"truthful": {"good": "truthful", "bad": "deceptive"}}))
    (tmp_path / "graph_of_base").mkdir()
    torchscript_graph(base, tmp_path / "graph_of_base")  # quicker than our own export
    for_gates = ["--queries", str(demo_queries(tmp_path / "demo_queries.jsonl", 100))]
    for_choice = ["--queries", str(demo_queries(tmp_path / "few_queries.jsonl", 24))]
    monkeypatch.chdir(tmp_path)
    # The same way with fewer of the shipped queries: a tenth of the time.
    shipped = pipeline.shipped_queries
    monkeypatch.setattr(pipeline, "shipped_queries", lambda objective: shipped(objective)[:24])
    monkeypatch.setattr(offered, "LADDER", (Rung("contrastive_decoding", (2.5,)), Rung("ridge", (2.0,))))
    found = commands(README)
    assert len(found) >= 20
    with running_hub(tmp_path / "hub") as hub:
        hub.store.add("user/base", files_of(base))
        for command in found:
            if "user/" in command:
                # The client reads its environment when it is imported, hence a process of its own.
                tool = [sys.executable, "-m", "alignez_bake", *words_of(command, "base")]
                env = hub.env(token=OWNER)
                done = subprocess.run(tool, env=env, capture_output=True, text=True, check=False, timeout=300)
                assert done.returncode == 0, f"{command}: {done.stderr}"
                continue
            # Gates need sides to tell apart, and a choice a base that follows its personas.
            trained = any(option in command for option in ("--gated", "--kl-budget", "--point"))
            words = words_of(command, "demo" if trained else "base")
            words += for_gates if "--gated" in command else for_choice if "--kl-budget" in command else []
            status = run(build_app(), words)
            assert status == 0, f"{command}: {capsys.readouterr().err}"
        aligned, lora = (hub.store.repositories[name] for name in ("user/aligned", "user/lora"))
        assert {"model.safetensors", "README.md"} <= aligned.commits[aligned.branches["main"]].keys()
        assert lora.private
        assert "adapter_config.json" in lora.commits[lora.branches["v1"]]


@pytest.mark.usefixtures("short_certificates")
def test_every_command_of_the_docs_runs(tmp_path, monkeypatch, capsys):
    """On the demo model, with edits of ridge and gated ones."""
    base = short_demo(tmp_path / "demo")
    queries = demo_queries(tmp_path / "queries.jsonl", 100)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "graph_of_base").mkdir()
    torchscript_graph(base, tmp_path / "graph_of_base")  # six layers: much quicker than our own export
    before = [
        f"alignez-bake pairs --model BASE --out pairs.jsonl --queries {queries}",
        "alignez-bake fit --model BASE --pairs pairs.jsonl --out edits.safetensors --method ridge",
        "alignez-bake fit --model BASE --pairs pairs.jsonl --out gated.safetensors --method alignez_v2 --gated",
    ]
    found = [command for page in PAGES[1:] for command in commands(page.read_text(encoding="utf-8"))]
    assert len(found) >= 6
    for command in before + found:
        status = run(build_app(), words_of(command, str(base)))
        assert status == 0, f"{command}: {capsys.readouterr().err}"


def test_the_first_command_is_the_whole_way():
    assert commands(README)[0] == "alignez-bake --model base --out aligned"


def test_the_readme_has_every_command_and_names_of_python_that_exist():
    shown = {command.split()[1] for command in commands(README)} - {"--model"}
    help_text = subprocess.run(
        [sys.executable, "-m", "alignez_bake", "--help"], capture_output=True, text=True, check=True
    ).stdout
    listed = re.findall(r"^  ([a-z]+) ", help_text[help_text.index("Commands:") :], re.MULTILINE)
    assert shown == set(listed) != set()
    (imported,) = re.findall(r"`from alignez_bake import ([^`]+)`", README)
    assert {name.strip() for name in imported.split(",")} <= set(alignez_bake.__all__)


def anchors(page: Path) -> set[str]:
    """What `#...` can name on a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s:]+)\)", page.read_text(encoding="utf-8")):
        name, _, anchor = target.partition("#")
        place = page.parent / name if name else page
        assert place.exists(), target
        assert not anchor or anchor in anchors(place), target


def test_what_the_readme_calls_today_is_there():
    rows = {row.split("|")[1].strip(): row.split("|")[2:4] for row in README.splitlines() if row.startswith("| ")}
    assert all(re.search(rf"\b{name}\b", rows["architectures"][0]) for name in known_model_types())
    assert all(f"`{name}`" in rows["methods"][0] for name in METHODS)
    assert all(f"`{name}`" in rows["result"][0] for name in EXPORTERS)


def test_each_kind_of_result_is_explained_in_readme_and_docs():
    for page in (README, (ROOT / "docs" / "exporters.md").read_text(encoding="utf-8")):
        rows = [row for row in page.splitlines() if row.startswith("| `")]
        assert all(any(row.startswith(f"| `{name}`") for row in rows) for name in EXPORTERS)


def test_makefile_runs_the_pip_form_of_the_readme():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for words in ('--editable ".[test,benchmarks]"', "examples/demo/queries.jsonl", "-m examples.before_and_after"):
        assert words in makefile
    for words in ('-e ".[test,benchmarks]"', "examples/demo/queries.jsonl", "-m examples.before_and_after"):
        assert words in README
    assert "make test" in (ROOT / ".ci" / "run").read_text()
    assert "make demo" in (ROOT / ".ci" / "run").read_text()
