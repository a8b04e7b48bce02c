"""Bad input: one clear line, status 2, and nothing written, hidden files included."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from alignez_bake.edit_file import write_edits
from alignez_bake.edit_plan import EditPlan
from alignez_bake.safetensors_io.writer import write_tensors
from tests.baking import nothing_written, plan_for, replace_tensors, rewrite_names

PROCESSOR = ("--device", "cpu")


@pytest.fixture
def refused(cli, tmp_path):
    """`refused(*arguments, says=...)`: status 2, one line that says it, nothing on standard output, nothing written."""

    def check(*arguments: object, says: str) -> None:
        with nothing_written(tmp_path):
            ran = cli(*arguments)
        assert ran.status == 2, ran.errors
        assert ran.out == ""
        (line,) = ran.errors
        assert line.startswith("error: ")
        assert says in line
        assert len(line) < 1000

    return check


@pytest.fixture
def base(cli_base, tmp_path):
    """A base of one's own, to be spoilt."""
    return shutil.copytree(cli_base, tmp_path / "base")


@pytest.fixture(scope="module")
def edits(tmp_path_factory, cli_base):
    """Edits for the base."""
    path = tmp_path_factory.mktemp("edits") / "edits.safetensors"
    write_edits(plan_for(cli_base), path)
    return path


@pytest.fixture
def way(whole_way):
    """`way(base) -> arguments` of the whole way for another base."""
    return lambda model: ("--model", model, *whole_way[2:])


# Models ------------------------------------------------------------------------------------------------------------


def config_changes(**changes):
    def spoil(base):
        file = base / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return spoil


SPOILT = {
    "no folder": (shutil.rmtree, "no such model folder"),
    "no config": (lambda base: (base / "config.json").unlink(), "is no model folder: it has no config.json"),
    "no weights": (lambda base: (base / "model.safetensors").unlink(), "holds neither model.safetensors"),
    "no causal head": (config_changes(architectures=["LlamaModel"]), "no causal language-model head"),
    "unknown type": (config_changes(model_type="mamba2"), "'mamba2' is not described here"),
    "pickled": (lambda base: (base / "model.safetensors").rename(base / "pytorch_model.bin"), "pickled weights"),
    "quantised": (config_changes(quantization_config={"quant_method": "gptq"}), "(quant_method 'gptq')"),
    "truncated": (lambda base: os.truncate(base / "model.safetensors", 5000), "truncated"),
    "an LFS pointer": (
        lambda base: (base / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n" * 9),
        "git-LFS pointer",
    ),
    "other shapes": (config_changes(hidden_size=64), "another shape"),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILT)
def test_models_that_are_none(name, base, refused, way, edits, tmp_path):
    spoil, says = SPOILT[name]
    spoil(base)
    refused(*way(base), "--out", tmp_path / "out", says=says)
    if name != "other shapes":  # only running the model tells
        refused("bake", "--model", base, "--edits", edits, "--out", tmp_path / "out", says=says)
        refused("explain", "--model", base, says=says)


def poisoned(values, value=np.nan):
    values = values.copy()
    values.reshape(-1)[3] = value
    return values


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("tensor", ["model.layers.1.self_attn.o_proj.weight", "model.norm.weight"])
def test_weights_that_are_not_finite(tensor, value, base, refused, way, edits, tmp_path):
    replace_tensors(base, lambda name, values: poisoned(values, value) if name == tensor else None)
    says = f"tensor '{tensor}' in {base / 'model.safetensors'} holds NaN or infinity"
    refused(*way(base), "--out", tmp_path / "out", says=says)
    arguments = ("bake", "--model", base, "--edits", edits, "--out", tmp_path / "out", "--allow-other-base")
    refused(*arguments, says=says)
    refused(*arguments, "--dtype", "float64", says=says)


def test_weights_that_no_model_uses_are_looked_at_too(base, refused, way, tmp_path):
    extra = {"mtp.weight": np.array([1, np.nan], np.float32)}
    rewrite_names(base, lambda tensors: tensors | extra)
    refused(*way(base), "--out", tmp_path / "out", says="tensor 'mtp.weight'")


# Places ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("full", "exists and is not empty"),
        ("file", "exists and is no folder"),
        ("link", "exists and is no folder"),
        ("base", "is the base model itself"),
        ("base/.", "is the base model itself"),
        ("base/out", "lies inside the base model"),
        ("base/deep/out", "lies inside the base model"),
        ("alias/out", "lies inside the base model"),
        ("full/../base", "is the base model itself"),
        (".", "contains the base model"),
        ("file/out", "cannot be written"),
        ("base/..", "does not name a folder"),
    ],
)  # fmt: skip
def test_places_where_no_result_can_go(name, says, base, refused, way, edits, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "alias").symlink_to(base)
    out = f"{tmp_path}/{name}"
    refused(*way(base), "--out", out, says=says)
    refused("bake", "--model", base, "--edits", edits, "--out", out, says=says)


def test_the_folder_that_one_stands_in(base, refused, way, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    refused(*way(base), "--out", ".", says="does not name a folder: give it a name")


def test_no_space_left(base, refused, way, edits, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=1000))
    refused(*way(base), "--out", tmp_path / "out", says="no space left")
    refused("bake", "--model", base, "--edits", edits, "--out", tmp_path / "a" / "out", says="no space left")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KiB, less than the weights."""
    place = tmp_path / "disk"
    place.mkdir()
    system = ctypes.CDLL(None, use_errno=True)
    if system.mount(b"tmpfs", str(place).encode(), b"tmpfs", 0, b"size=64k") != 0:
        pytest.skip(f"no file system can be mounted here: {os.strerror(ctypes.get_errno())}")
    yield place
    system.umount2(str(place).encode(), 2)


@pytest.mark.parametrize("dtype", [(), ("--dtype", "float64")])
def test_a_disk_that_fills_up(dtype, small_disk, cli_base, refused, edits, monkeypatch):
    """Nothing of it stays: the check of the free space is made to see nothing."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=10**12))
    arguments = ("bake", "--model", cli_base, "--edits", edits, "--out", small_disk / "new" / "out", *dtype)
    refused(*arguments, says="no space left")


# Queries and pairs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "no such file of queries"),
        (b"", "holds no query"),
        (b"\n \n", "holds no query"),
        (b'{"query": "a"}\n{"question": "b"}\n', "line 2 has no text under the key 'query'"),
        (b'{"query": "a"}\nplain\n', "line 2 is no JSON object"),
        (b'{"query": "a"\n', "line 1 is not valid JSON"),
        (b"\xff\xfe\x00", "is not UTF-8 text"),
        (b"word " * 300, "positions"),
    ],
)
def test_queries_that_are_none(text, says, cli_base, refused, tmp_path):
    path = tmp_path / "queries.txt"
    if text is not None:
        path.write_bytes(text)
    model = ("--model", cli_base, "--queries", path, *PROCESSOR)
    refused(*model, "--method", "ridge", "--out", tmp_path / "out", says=says)
    refused("pairs", *model, "--out", tmp_path / "new" / "pairs.jsonl", says=says)


def pair_lines(count=4, **extra):
    sides = [(number, side) for number in range(count) for side in ("good", "bad")]
    return "".join(
        json.dumps({"query": f"q{number}", "side": side, "answer": f" {side} {number}", **extra}) + "\n"
        for number, side in sides
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "no such file of pairs"),
        ("", "holds no pairs"),
        ("{}\n", "line 1: 'query' is missing"),
        ('{"query": "q", "side": "kind", "answer": "a"}\n', "is neither 'good' nor 'bad'"),
        ('{"query": "q", "side": "good", "answer": "a"}\n', "pairs"),
        (pair_lines(objective="unknown"), "objective 'unknown'"),
    ],
)
def test_pairs_that_are_none(text, says, cli_base, refused, tmp_path):
    if text is not None:
        (tmp_path / "pairs.jsonl").write_text(text)
    arguments = ("fit", "--model", cli_base, "--pairs", tmp_path / "pairs.jsonl", "--method", "ridge", *PROCESSOR)
    refused(*arguments, "--out", tmp_path / "new" / "edits.safetensors", says=says)


def test_pairs_of_another_model(cli_base, refused, cli, tmp_path, save_tiny, queries):
    other = save_tiny("llama", tmp_path / "other", seed=1, overrides={"max_position_embeddings": 96})
    pairs = tmp_path / "pairs.jsonl"
    arguments = ("pairs", "--out", pairs, "--queries", queries, "--prompt-template", "{query}", *PROCESSOR)
    assert cli(*arguments, "--model", other).status == 0
    fit = ("fit", "--pairs", pairs, "--out", tmp_path / "edits.safetensors", "--method", "ridge", *PROCESSOR)
    refused(*fit, "--model", cli_base, says="holds pairs of another model")
    refused(*arguments, "--model", cli_base, says="exists and cannot be continued")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    (other / "tokenizer.json").write_text(json.dumps(tokenizer, indent=1))
    refused(*fit, "--model", other, says="another model's tokens")


def test_fit_replaces_edits_but_nothing_else(base, refused, cli, tmp_path):
    (tmp_path / "pairs.jsonl").write_text(pair_lines(12))
    fit = ("fit", "--model", base, "--pairs", tmp_path / "pairs.jsonl", "--method", "ridge", *PROCESSOR)
    refused(*fit, "--out", base / "model.safetensors", says="is no edit file, so it is not replaced")
    refused(*fit, "--out", base, says="is a folder")
    for _ in range(2):
        assert cli(*fit, "--out", tmp_path / "edits.safetensors").status == 0


# Settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--layers", "0-2"), "the model has no layer 2; use layers within 0-1"),
        (("--layers", "7"), "the model has no layer 7"),
        (("--layers", "1-0"), "runs backwards"),
        (("--layers", "all"), "neither a number nor a range"),
        (("--rank", "0"), "rank 0 is not possible"),
        (("--rank", "-1"), "rank -1 is not possible"),
        (("--rank", "33"), "rank 33 is above what site attn_write.0 has: its map is 32 x 32"),
        (("--penalty", "-1"), "penalty -1 is not possible"),
        (("--penalty", "nan"), "penalty nan is not possible"),
        (("--method", "auto", "--penalty", "0.1"), "--penalty belongs to a method that is named"),
        (("--positions", "last"), "--positions last: weights edit every position"),
        (("--positions", "first"), "positions 'first' is unknown: use one of all, last"),
        (("--method", "alignez_v2", "--gated"), "cannot be folded into weights and need an inserted module"),
        (("--gated",), "--gated"),
        (("--positions", "last", "--trust-remote-code", "--require-fold"), "--positions last: weights edit every"),
        (("--positions", "last", "--as", "adapter"), "only the last position is edited"),
    ],
)
def test_settings_out_of_range(arguments, says, whole_way, refused, tmp_path, monkeypatch):
    def run(*_args, **_settings):
        raise AssertionError("a model was loaded before the settings were checked")

    monkeypatch.setattr("alignez_bake.commands.align.load_language_model", run)
    refused(*whole_way, *arguments, "--out", tmp_path / "out", says=says)
    refused(*whole_way, *arguments, "--out", tmp_path / "out", "--dry-run", says=says)


def test_a_strength_that_overflows(cli, save_tiny, refused, way, tmp_path):
    base = save_tiny("llama", tmp_path / "base", dtype=torch.float16, overrides={"max_position_embeddings": 96})
    refused(*way(base), "--strength", "1e9", "--out", tmp_path / "new" / "out", says="overflows F16 in model.layers.0")
    edits = tmp_path / "edits.safetensors"
    write_edits(plan_for(base).scaled(1e9), edits)
    bake = ("bake", "--model", base, "--edits", edits, "--out", tmp_path / "out")
    refused(*bake, says="use a smaller strength, or --dtype float32")
    refused(*bake, "--dtype", "float64", "--objective", "x", says="no edit has the objective 'x'")
    write_edits(plan_for(base).scaled(1e305), edits)
    refused(*bake, "--dtype", "float32", says="overflows F32")
    assert cli(*bake, "--dtype", "float64").status == 0  # it fits, whatever it is good for


# Edits -------------------------------------------------------------------------------------------------------------


def test_edits_for_another_base(cli_base, refused, cli, save_tiny, tmp_path):
    other = save_tiny("llama", tmp_path / "other", seed=1, overrides={"max_position_embeddings": 96})
    edits, out = tmp_path / "edits.safetensors", tmp_path / "out"
    write_edits(plan_for(other), edits)
    bake = ("bake", "--model", cli_base, "--edits", edits, "--out", out)
    refused(*bake, says="the edits were made for another base")
    refused("explain", "--model", cli_base, "--edits", edits, says="the edits were made for another base")
    assert cli(*bake, "--allow-other-base").status == 0


def test_edits_that_do_not_fit(cli_base, refused, save_tiny, tmp_path):
    other = save_tiny("qwen3", tmp_path / "other")
    write_edits(replace(plan_for(other), base=None), tmp_path / "edits.safetensors")
    bake = ("bake", "--model", cli_base, "--edits", tmp_path / "edits.safetensors", "--out", tmp_path / "out")
    refused(*bake, says="the edit has width 48, the site's output has 32")
    homeless = save_tiny("phi3", tmp_path / "phi3")
    write_edits(plan_for(homeless, constant=True), tmp_path / "edits.safetensors")
    refused(*bake[:2], homeless, *bake[3:], says="its constant needs a bias")
    deep = replace(plan_for(cli_base).edits[0], site=replace(plan_for(cli_base).edits[0].site, layer=10**15))
    write_edits(EditPlan((deep,)), tmp_path / "edits.safetensors")
    refused(*bake, says="layers 0 to 1")


def hostile_document(**changes):
    entry = {"site": {"kind": "attn_write", "layer": 0}, "reads": "output", "gate": "identity", "positions": "all"}
    entry |= {"strength": 1.0, **changes.pop("entry", {})}
    return json.dumps({"format": 1, "base": None, "edits": [entry]} | changes)


@pytest.mark.parametrize(
    ("document", "says"),
    [
        (None, "must have the key 'alignez'"),
        ("{", "not valid JSON"),
        (hostile_document(format=2), "this version reads format 1"),
        (hostile_document(edits=[]), "must be a JSON array"),
        (hostile_document(code="import os"), "the key 'code' is unknown"),
        (hostile_document(entry={"gate": "exp"}), "gate 'exp'"),
        (hostile_document(entry={"strength": float("nan")}), "numbers must be finite"),
        (hostile_document(entry={"site": {"kind": "logits"}}), "site kind 'logits' is unknown"),
        (hostile_document(weights={"helpful": 1.0}), "no edit has the objective 'helpful'"),
        (hostile_document(base={"model_type": "llama"}), "config_sha256"),
    ],
)
def test_hostile_edits(document, says, cli_base, refused, tmp_path):
    path = tmp_path / "edits.safetensors"
    arrays = {"edits.0.left": np.ones((32, 1), np.float32), "edits.0.right": np.ones((32, 1), np.float32)}
    write_tensors(path, arrays, {} if document is None else {"alignez": document})
    refused("bake", "--model", cli_base, "--edits", path, "--out", tmp_path / "out", says=says)
    refused("explain", "--model", cli_base, "--edits", path, says=says)
    refused("inspect", path, says=says)


def test_a_file_that_is_not_there(cli_base, refused, tmp_path):
    path = tmp_path / "edits.safetensors"
    refused("bake", "--model", cli_base, "--edits", path, "--out", tmp_path / "out", says="no such file of edits")
    refused("inspect", path, says="no such file of edits")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is empty"),
        (b"\x80\x04\x95" + b"p" * 100, "Python pickle"),
        (b"PK\x03\x04" + b"z" * 100, "zip archive"),
        (b"\xff" * 200, "not a safetensors file"),
    ],
)
def test_files_that_are_no_edits(data, says, cli_base, refused, tmp_path):
    path = tmp_path / "edits.safetensors"
    path.write_bytes(data)
    refused("bake", "--model", cli_base, "--edits", path, "--out", tmp_path / "out", says=says)
    refused("inspect", path, says=says)
