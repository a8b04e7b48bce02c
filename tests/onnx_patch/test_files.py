"""What a patch writes, and what it shares with its base."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace

import numpy as np
import onnx
import pytest

from alignez_bake import file_sharing
from alignez_bake.commands.bake_onnx import bake_onnx
from alignez_bake.edit_plan import EditPlan
from alignez_bake.onnx_graph.initialisers import open_graph
from tests.baking import contents, nothing_written
from tests.onnx_patch.graphs import GRAPH, plan_at

DATA, SIDE = f"{GRAPH}_data", f"{GRAPH}_edits_data"


@pytest.fixture
def without_reflinks(monkeypatch):
    """As on a file system that cannot share blocks, wherever the tests run."""
    monkeypatch.setattr(file_sharing, "cloned", lambda _source, _target: False)


def test_data_that_are_not_edited_stay_the_same_file(graph_folder, tiny_folder, tmp_path, without_reflinks):
    base = graph_folder("external", "llama")
    with nothing_written(base):
        result = bake_onnx(base, plan_at(tiny_folder("llama")), tmp_path / "out")
    out = tmp_path / "out"
    assert result.data_files == ((DATA, "hard-linked"),)
    assert (out / DATA).samefile(base / DATA)
    tensors = open_graph(out / GRAPH)
    at_side = [name for name in tensors if tensors.entry(name).file == out / SIDE]
    assert len(at_side) == 4
    assert result.written == (out / GRAPH).stat().st_size + (out / SIDE).stat().st_size
    assert (out / GRAPH).stat().st_size < 1.1 * (base / GRAPH).stat().st_size
    # Four tensors, each beginning at a page.
    sizes = [tensors.entry(name).size * 4 for name in at_side]
    assert (out / SIDE).stat().st_size < sum(sizes) + 4 * 4096
    assert "hard-linked" in (out / "README.md").read_text()


def test_only_edited_initialisers_differ(graph_folder, tiny_folder, tmp_path):
    for kind in ("external", "dynamo"):
        base, out = graph_folder(kind, "llama"), tmp_path / kind
        result = bake_onnx(base, plan_at(tiny_folder("llama")), out)
        before, after = open_graph(base / GRAPH), open_graph(out / GRAPH)
        assert list(before) == list(after)
        changed = [name for name in before if before.read_bytes(name) != after.read_bytes(name)]
        assert len(changed) == 4
        assert result.levels[0].to_json()["untouched_tensors"] == len(before) - 4


def test_weights_inside_the_graph_stay_inside(graph_folder, tiny_folder, tmp_path):
    result = bake_onnx(graph_folder("dynamo", "llama"), plan_at(tiny_folder("llama")), tmp_path / "out")
    assert result.data_files == ()
    assert not [path.name for path in (tmp_path / "out").iterdir() if "data" in path.name]


def test_only_nodes_are_new_where_nothing_folds_and_small_values_stay_in_the_graph(graph_folder, tiny_folder, tmp_path):
    plan = plan_at(tiny_folder("llama"))
    gated = EditPlan(tuple(replace(edit, gate="relu") for edit in plan.edits))
    bake_onnx(graph_folder("external", "llama"), gated, tmp_path / "out")
    assert not (tmp_path / "out" / SIDE).exists()


def test_files_are_copied_and_said_to_be_across_file_systems(
    graph_folder, tiny_folder, tmp_path, monkeypatch, without_reflinks
):
    def refuse(*_arguments, **_settings):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", refuse)
    base, out = graph_folder("external", "llama"), tmp_path / "out"
    result = bake_onnx(base, plan_at(tiny_folder("llama")), out)
    assert result.data_files == ((DATA, "copied"),)
    assert not (out / DATA).samefile(base / DATA)
    assert (out / DATA).read_bytes() == (base / DATA).read_bytes()
    assert result.to_json()["data_files"] == [{"name": DATA, "way": "copied"}]


def test_a_full_disk_is_no_reason_to_copy(graph_folder, tiny_folder, tmp_path, monkeypatch, without_reflinks):
    def refuse(*_arguments, **_settings):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(ValueError, match="no space left"):
        bake_onnx(graph_folder("external", "llama"), plan_at(tiny_folder("llama")), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_data_in_folders_and_behind_links_are_found(own_graph, tiny_folder, tmp_path):
    base = own_graph("external", "llama")
    (base / "weights").mkdir()
    (base / DATA).rename(base / "weights" / "first.bin")
    model = onnx.load(base / GRAPH, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "weights/first.bin"
    (base / GRAPH).write_bytes(model.SerializeToString())
    result = bake_onnx(base, plan_at(tiny_folder("llama")), tmp_path / "out")
    assert result.verdict == "passed"
    assert (tmp_path / "out" / "weights" / "first.bin").is_file()


def test_what_lies_beside_the_graph_comes_along(own_graph, tiny_folder, tmp_path):
    base = own_graph("external", "llama")
    (base / "README.md").write_text("---\nlicense: mit\n---\nthe base's own\n")
    (base / "other.onnx_data").write_text("of another graph")
    result = bake_onnx(base, plan_at(tiny_folder("llama")), tmp_path / "out", seed=7)
    found = contents(tmp_path / "out")
    for name in ("config.json", "tokenizer.json", "generation_config.json"):
        assert found[name] == (base / name).read_bytes()
    assert found["alignez/base_README.md"] == (base / "README.md").read_bytes()
    assert [name for name, _ in result.skipped] == ["other.onnx_data"]
    record = json.loads(found["alignez/alignez.json"])
    assert (record["artefact"], record["base"], record["seed"]) == ("onnx-patch", None, 7)
    assert record["base_graph"]["model_type"] == "llama"
    assert len(record["decisions"]) == 4
    assert json.loads(found["alignez/certificate.json"])["verdict"] == "passed"
    assert b"license: mit" in found["README.md"]
    assert sorted(record["base_graph"]["data_sha256"]) == [DATA]


def test_the_same_command_gives_the_same_bytes(graph_folder, tiny_folder, tmp_path):
    plan = plan_at(tiny_folder("llama"), constant=True)
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        bake_onnx(graph_folder("external", "llama"), plan, tmp_path / name / "out")
    assert contents(tmp_path / "first") == contents(tmp_path / "second")


def test_a_patched_graph_can_be_patched_again_if_nothing_was_inserted(graph_folder, tiny_folder, tmp_path):
    plan = plan_at(tiny_folder("llama", True))
    bake_onnx(graph_folder("external", "llama", True), plan, tmp_path / "first")
    result = bake_onnx(tmp_path / "first", plan, tmp_path / "second")
    assert result.verdict == "passed"
    assert {name for name, _ in result.data_files} == {DATA}  # nothing reads the first side file any more


def test_float16_graphs_are_rounded_once(tiny_folder, own_graph, tmp_path):
    from onnx import numpy_helper

    base = own_graph("dynamo", "llama")
    model = onnx.load(base / GRAPH)
    for tensor in model.graph.initializer:
        if tensor.data_type == 1:
            half = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(half, tensor.name))
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == 1:
                attribute.i = 10
            if attribute.HasField("t") and attribute.t.data_type == 1:
                half = numpy_helper.to_array(attribute.t).astype(np.float16)
                attribute.t.CopyFrom(numpy_helper.from_array(half))
    del model.graph.value_info[:]
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type == 1:
            value.type.tensor_type.elem_type = 10
    (base / GRAPH).write_bytes(model.SerializeToString())
    plan = plan_at(tiny_folder("llama"), constant=True)
    result = bake_onnx(base, plan, tmp_path / "out", model=tiny_folder("llama"))
    assert result.verdict == "passed", result.reasons
    tensors = open_graph(tmp_path / "out" / GRAPH)
    assert {tensors.entry(name).data_type for name in tensors} & {1, 10} == {10}
    assert result.levels[0].to_json()["lowest_delivered_share"] > 0.99
