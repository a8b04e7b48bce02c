"""The whole way on a tiny model, in one command and step by step; interrupted, resumed, repeated."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from alignez_bake.commands import align as align_module
from alignez_bake.model_folder import open_model_folder
from tests.baking import contents, nothing_written, rewrite_names

# As this process: tiny models are slower on many threads, and sums come out the same on as many.
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def aligned(tmp_path_factory, cli_base, queries):
    """The result of one run, with its pairs, and what it printed as JSON."""
    out = tmp_path_factory.mktemp("aligned") / "out"
    arguments = ["--model", cli_base, "--out", out, "--queries", queries, "--prompt-template", "{query}"]
    done = python(*arguments, "--method", "ridge", "--save-pairs", "--json")
    assert done.returncode == 0, done.stderr
    return out, json.loads(done.stdout)


def python(*arguments: object, **settings) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    command = [sys.executable, "-m", "alignez_bake", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=ONE_THREAD, **settings)


def test_the_result_is_certified_on_both_levels(aligned, cli_base):
    out, printed = aligned
    assert printed["verdict"] == "passed"
    assert {level["verdict"] for level in printed["certificate"].values()} == {"passed"}
    assert printed["plan"]["duplicate_queries_dropped"] == 1
    assert printed["plan"]["queries"] == 12
    assert "positions" in printed["note"]
    written = json.loads((out / "alignez" / "certificate.json").read_text())
    assert written["levels"] == printed["certificate"]
    pairs = (out / "alignez" / "pairs.jsonl").read_text().splitlines()
    assert len(pairs) == 1 + 2 * 12
    assert sorted(path.name for path in out.parent.iterdir()) == ["out"]
    ours = {"alignez.json", "certificate.json", "edits.safetensors", "manifest.json", "pairs.jsonl"}
    ours |= {"report.html", "report.json"}
    expected = {"README.md", "alignez", *(f"alignez/{name}" for name in ours)}
    assert set(contents(out)) == set(contents(cli_base)) | expected


def test_the_same_command_gives_the_same_bytes(aligned, cli, whole_way, tmp_path):
    """Once in a process of its own and once in this one: nothing of a process, a place or a time is in them."""
    ran = cli(*whole_way, "--out", tmp_path / "out", "--save-pairs")
    assert ran.status == 0
    assert "passed" in ran.out
    assert "1 repeated queries were dropped" in ran.out
    assert contents(aligned[0]) == contents(tmp_path / "out")


def test_step_by_step_gives_the_same_model(aligned, cli, whole_way, tmp_path, cli_base):
    model = ("--model", cli_base)
    pairs, edits, out = tmp_path / "pairs.jsonl", tmp_path / "new" / "edits.safetensors", tmp_path / "out"
    ran = cli("pairs", *whole_way[: whole_way.index("--method")], "--out", pairs, "--json")
    assert ran.status == 0
    assert (ran.json["answers"], ran.json["duplicate_queries_dropped"]) == (24, 1)
    assert pairs.read_bytes() == (aligned[0] / "alignez" / "pairs.jsonl").read_bytes()
    ran = cli("fit", *model, "--pairs", pairs, "--out", edits, "--method", "ridge", "--json")
    assert ran.status == 0
    assert ran.json["edits"] == 2
    ran = cli("bake", *model, "--edits", edits, "--out", out, "--verify", "forward", "--json")
    assert ran.status == 0
    assert ran.json["certificate"] == aligned[1]["certificate"]
    assert (out / "model.safetensors").read_bytes() == (aligned[0] / "model.safetensors").read_bytes()


def test_later_commands_read_the_result(aligned, cli, cli_base):
    out, printed = aligned
    ran = cli("verify", out, "--json")
    assert ran.status == 0
    assert ran.json["certificate"] == printed["certificate"]
    ran = cli("inspect", out, "--json")
    assert [edit["site"] for edit in ran.json["edits"]] == ["attn_write.0", "attn_write.1"]
    assert ran.json["record"]["provenance"]["method"] == "ridge"
    ran = cli("explain", "--model", cli_base, "--edits", out / "alignez" / "edits.safetensors", "--json")
    assert {decision["route"] for decision in ran.json["decisions"]} == {"fold"}
    ran = cli("compare", "--aligned", out, "--prompt", "pot 1?", "--max-new-tokens", "8", "--json")
    (answer,) = ran.json["answers"]
    assert answer["base"] != answer["aligned"]
    for command in (("verify", out, "--level", "tensors"), ("inspect", out), ("explain", "--model", cli_base)):
        ran = cli(*command)
        assert ran.status == 0
        assert ran.out


@pytest.mark.parametrize("method", ["residual_ridge", "alignez_v1", "alignez_v2", "mean_difference", "shift"])
def test_every_method_fits_the_pairs(method, aligned, cli, cli_base, tmp_path):
    edits = tmp_path / "edits.safetensors"
    arguments = ("fit", "--model", cli_base, "--pairs", aligned[0] / "alignez" / "pairs.jsonl", "--out", edits)
    ran = cli(*arguments, "--method", method, "--layers", "1", "--json")
    assert ran.status == 0, ran.errors
    assert ran.json["provenance"]["settings"]["layers"] == [1]
    assert cli("inspect", edits, "--json").json["edits"][0]["site"].endswith(".1")


def test_a_larger_penalty_makes_a_gentler_edit(aligned, cli, cli_base, tmp_path):
    arguments = ("fit", "--model", cli_base, "--pairs", aligned[0] / "alignez" / "pairs.jsonl", "--method", "ridge")
    norms = []
    for penalty in ("0.001", "10"):
        ran = cli(*arguments, "--penalty", penalty, "--out", tmp_path / f"{penalty}.safetensors", "--json")
        assert ran.status == 0, ran.errors
        assert ran.json["provenance"]["settings"]["penalty"] == float(penalty)
        norms.append([site["edit_norm"] for site in ran.json["provenance"]["sites"]["helpful"]])
    assert all(tight < 0.5 * loose for loose, tight in zip(*norms, strict=True))


def test_a_dry_run_writes_nothing(cli, whole_way, tmp_path, cli_base):
    with nothing_written(tmp_path, cli_base):
        ran = cli(*whole_way, "--out", tmp_path / "new" / "out", "--dry-run", "--json")
    assert ran.status == 0
    assert ran.json["dry_run"] is True
    assert ran.json["plan"]["sites"] == ["attn_write.0", "attn_write.1"]
    assert ran.json["plan"]["method"] == {"name": "ridge", "strength": 2.0, "rank": None, "layers": [0, 1]}


def test_unknown_tensors_go_the_whole_way(cli, whole_way, tmp_path, cli_base, queries):
    base = shutil.copytree(cli_base, tmp_path / "base")
    extra = {"mtp.layers.0.weight": np.arange(6, dtype=np.float32), "vision.count": np.array(3, np.int64)}
    rewrite_names(base, lambda tensors: tensors | extra)
    ran = cli("--model", base, *whole_way[2:], "--out", tmp_path / "out")
    assert ran.status == 0, ran.errors
    tensors = open_model_folder(tmp_path / "out").tensors
    for name, values in extra.items():
        assert tensors.read(name).tobytes() == values.tobytes()


def test_objectives_of_ones_own_and_dials(cli, whole_way, tmp_path):
    (tmp_path / "own.json").write_text('{"truthful": {"good": "truthful", "bad": "deceptive"}}')
    arguments = (*whole_way, "--objectives-file", tmp_path / "own.json", "--objective", "truthful,harmless=0.5")
    ran = cli(*arguments, "--out", tmp_path / "out", "--json", "--layers", "0")
    assert ran.status == 0, ran.errors
    inspected = cli("inspect", tmp_path / "out", "--json").json
    assert inspected["weights"] == {"truthful": 1.0, "harmless": 0.5}
    assert [edit["objective"] for edit in inspected["edits"]] == ["truthful", "harmless"]
    record = json.loads((tmp_path / "out" / "alignez" / "alignez.json").read_text())
    assert record["provenance"]["objectives"]["truthful"] == {"good": "truthful", "bad": "deceptive"}


# Interrupts the run after its first batch, as Ctrl-C does.
INTERRUPTED = """
import os, signal, sys
from alignez_bake.preference_pairs.resume import GrowingPairFile
append = GrowingPairFile.append
def append_and_interrupt(self, records):
    append(self, records)
    os.kill(os.getpid(), signal.SIGINT)
GrowingPairFile.append = append_and_interrupt
from alignez_bake.cli.main import main
sys.argv[0] = "alignez-bake"
main()
"""


def test_an_interrupted_run_leaves_no_result_and_goes_on_to_the_same_bytes(cli, whole_way, tmp_path):
    arguments = [*map(str, whole_way), "--batch-size", "8", "--save-pairs"]
    interrupted = [sys.executable, "-c", INTERRUPTED, *arguments, "--out", str(tmp_path / "a" / "out")]
    done = subprocess.run(interrupted, capture_output=True, text=True, check=False, env=ONE_THREAD)
    assert done.returncode == 130
    assert done.stderr.splitlines()[-1].startswith("error: interrupted")
    assert "Traceback" not in done.stderr
    assert not done.stdout
    left = {name: data for name, data in contents(tmp_path / "a").items() if data is not None}
    assert list(left) == [".out.pairs.jsonl"]
    assert left[".out.pairs.jsonl"].count(b"\n") == 1 + 8

    assert cli(*arguments, "--out", tmp_path / "a" / "out").status == 0
    assert cli(*arguments, "--out", tmp_path / "b" / "out").status == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_ctrl_c_from_outside(whole_way, tmp_path):
    """A real signal to a real process, whenever it comes after the pairs have begun."""
    command = [sys.executable, "-m", "alignez_bake", *map(str, whole_way), "--batch-size", "2"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": ONE_THREAD}
    growing = tmp_path / ".out.pairs.jsonl"
    with subprocess.Popen([*command, "--out", str(tmp_path / "out")], **pipes) as process:
        until = time.monotonic() + 120
        while not growing.exists() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGINT)
        printed, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1].startswith("error: interrupted")
    assert not printed
    assert [path.name for path in tmp_path.iterdir()] == [growing.name]


def test_what_a_later_step_refuses_leaves_nothing(cli, whole_way, tmp_path, monkeypatch):
    def refuse(*_args, **_settings):
        raise align_module.BadInputError("no")

    monkeypatch.setattr(align_module, "bake", refuse)
    with nothing_written(tmp_path):
        ran = cli(*whole_way, "--out", tmp_path / "new" / "out")
    assert (ran.status, ran.errors[-1]) == (2, "error: no")


def test_pairs_of_another_run_are_left_alone(cli, whole_way, tmp_path):
    (tmp_path / ".out.pairs.jsonl").write_text('{"query": "mine"}\n')
    with nothing_written(tmp_path):
        ran = cli(*whole_way, "--out", tmp_path / "out")
    assert ran.status == 2
    assert ".out.pairs.jsonl exists" in ran.errors[-1]
