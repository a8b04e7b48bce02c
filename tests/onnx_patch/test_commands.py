"""Patched graphs on the command line: baked, verified again, compared, inspected; beside their model if it is given."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest

from alignez_bake.edit_file import write_edits
from tests.baking import nothing_written, plan_for
from tests.cli.conftest import cli  # noqa: F401 - a fixture

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def patched(tmp_path, graph_folder, tiny_folder, cli) -> Path:  # noqa: F811
    """`OUT` of one patch, made with its model at hand. The graph that it was made from lies beside it."""
    shutil.copytree(graph_folder("external", "llama"), tmp_path / "base")
    write_edits(plan_for(tiny_folder("llama")), tmp_path / "edits.safetensors")
    ran = cli(*bake_words(tmp_path), "--model", tiny_folder("llama"), "--json")
    assert ran.status == 0, ran.errors
    forward = ran.json["certificate"]["forward"]
    assert forward["logits_moved"] > forward["required_logits_moved"]
    for entry in forward["model"]["comparisons"]:
        assert entry["error_to_hooked_base"] <= 1e-4
        assert entry["moved"] >= 100 * 1e-4
    assert [file["way"] for file in ran.json["data_files"]] == ["hard-linked"]
    return tmp_path / "out"


def bake_words(folder: Path) -> tuple[object, ...]:
    edits = folder / "edits.safetensors"
    return ("bake", "--base-onnx", folder / "base", "--edits", edits, "--out", folder / "out", "--device", "cpu")


def test_a_patched_graph_goes_through_every_command(patched, tiny_folder, tmp_path, cli):  # noqa: F811
    ran = cli("verify", patched, "--device", "cpu", "--json")
    assert ran.status == 0, ran.errors
    assert list(ran.json["certificate"]) == ["tensors", "forward"]
    assert "model" not in ran.json["certificate"]["forward"]
    ran = cli("inspect", patched, "--json")
    assert ran.json["record"]["artefact"] == "onnx-patch"
    asked = ("--prompt", "pot 1?", "--prompt", "a kettle", "--max-new-tokens", "8", "--device", "cpu", "--json")
    ran = cli("compare", "--aligned", patched, "--model", tiny_folder("llama"), *asked)
    assert ran.status == 0, ran.errors
    checkpoint = tmp_path / "checkpoint"
    edits = tmp_path / "edits.safetensors"
    assert cli("bake", "--model", tiny_folder("llama"), "--edits", edits, "--out", checkpoint).status == 0
    assert ran.json == cli("compare", "--aligned", checkpoint, *asked).json
    assert all(answer["base"] != answer["aligned"] for answer in ran.json["answers"])

    (tmp_path / "base").rename(tmp_path / "moved")
    ran = cli("verify", patched, "--level", "tensors")
    assert (ran.status, "--base-onnx DIR" in ran.errors[-1]) == (2, True)
    assert cli("verify", patched, "--base-onnx", tmp_path / "moved", "--level", "tensors").status == 0
    ran = cli("verify", checkpoint, "--base-onnx", tmp_path / "moved")
    assert (ran.status, "is for patched graphs" in ran.errors[-1]) == (2, True)


def test_another_graph_is_not_its_base_and_a_changed_value_fails(patched, tmp_path, cli):  # noqa: F811
    config = tmp_path / "base" / "config.json"
    before = config.read_text()
    config.write_text(json.dumps({**json.loads(before), "rms_norm_eps": 0.5}))
    ran = cli("verify", patched, "--level", "tensors")
    assert (ran.status, "is not the graph that" in ran.errors[-1]) == (2, True)
    config.write_text(before)
    data = bytearray((patched / "model.onnx_edits_data").read_bytes())
    data[3] ^= 1
    (patched / "model.onnx_edits_data").write_bytes(bytes(data))
    ran = cli("verify", patched)
    assert ran.status == 1
    assert ran.errors[-1].startswith("error: the certificate is failed: ")


def test_what_means_nothing_beside_a_graph_is_refused(tmp_path, graph_folder, tiny_folder, cli):  # noqa: F811
    shutil.copytree(graph_folder("external", "llama"), tmp_path / "base")
    write_edits(plan_for(tiny_folder("llama")), tmp_path / "edits.safetensors")
    for option in (("--as", "gguf"), ("--int4",), ("--optimize",), ("--dtype", "float16"), ("--linearise",)):
        with nothing_written(tmp_path):
            ran = cli(*bake_words(tmp_path), *option)
        assert (ran.status, f"{option[0]} means nothing with --base-onnx" in ran.errors[-1]) == (2, True)
    ran = cli("bake", "--edits", tmp_path / "edits.safetensors", "--out", tmp_path / "out")
    assert (ran.status, "--model BASE is missing, or --base-onnx DIR" in ran.errors[-1]) == (2, True)
    with nothing_written(tmp_path):
        ran = cli(*bake_words(tmp_path), "--dry-run")
    assert (ran.status, "nothing was written" in ran.out) == (0, True)
