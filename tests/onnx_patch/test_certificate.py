"""The certificate sees what is wrong with a patched graph, and says so when it cannot tell."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest

from alignez_bake.commands.bake_onnx import bake_onnx
from alignez_bake.edit_plan import EditPlan
from alignez_bake.onnx_graph.initialisers import open_graph
from alignez_bake.onnx_patch import patch as patch_module
from alignez_bake.onnx_patch.base_graph import open_base_graph
from alignez_bake.onnx_patch.decisions import site_patches
from alignez_bake.onnx_patch.forward_level import certify_running
from alignez_bake.onnx_patch.patch import write_patched
from alignez_bake.onnx_patch.tensors_level import certify_stored
from alignez_bake.progress import NoProgress
from tests.onnx_patch.graphs import GRAPH, plan_at, rewritten


def certified(base, plan, graph):
    """Verdicts and reasons of both levels."""
    opened = open_base_graph(base)
    patches = site_patches(opened, plan, require_fold=False)
    return (
        certify_stored(opened, patches, graph, NoProgress()),
        certify_running(opened, patches, graph, device="cpu", progress=NoProgress()),
    )


def written(base, plan, folder):
    folder.mkdir()
    opened = open_base_graph(base)
    write_patched(opened, site_patches(opened, plan, require_fold=False), folder, NoProgress())
    return folder / GRAPH


def changed(graph, name, change):
    """The graph with other values of one initialiser, inside its file."""

    def set_values(model):
        (tensor,) = (entry for entry in model.graph.initializer if entry.name == name)
        values = np.ascontiguousarray(change(open_graph(graph).read(name).copy()))
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, name))

    rewritten(graph, set_values)


@pytest.fixture
def llama(graph_folder, tiny_folder):
    return graph_folder("external", "llama", True), plan_at(tiny_folder("llama", True), constant=True)


def test_a_right_patch_passes_both_levels(llama, tmp_path):
    base, plan = llama
    for level in certified(base, plan, written(base, plan, tmp_path / "out")):
        assert (level.verdict, level.reasons) == ("passed", ())


MUTATIONS = {
    "one layer left out": lambda plan: EditPlan(plan.edits[1:]),
    "one edit twice": lambda plan: EditPlan((*plan.edits, plan.edits[0])),
    "no offsets": lambda plan: EditPlan(tuple(replace(edit, offset=None) for edit in plan.edits)),
    "left is right": lambda plan: EditPlan(
        tuple(replace(edit, right=edit.left, left=edit.right) for edit in plan.edits)
    ),
    "a little stronger": lambda plan: plan.scaled(1.001),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_another_plan_is_seen_at_both_levels(llama, tmp_path, mutation):
    base, plan = llama
    for level in certified(base, plan, written(base, MUTATIONS[mutation](plan), tmp_path / "out")):
        assert level.verdict == "failed", level.level


def test_another_plan_of_inserted_edits_is_seen_when_it_runs(llama, tmp_path):
    base, plan = llama
    gated = EditPlan(tuple(replace(edit, gate="relu") for edit in plan.edits))
    other = EditPlan(tuple(replace(edit, gate="tanh") for edit in plan.edits))
    _, forward = certified(base, gated, written(base, other, tmp_path / "out"))
    assert forward.verdict == "failed"
    last = EditPlan(tuple(replace(edit, positions="last") for edit in gated.edits))
    _, forward = certified(base, last, written(base, gated, tmp_path / "all"))
    assert forward.verdict == "failed"


def test_a_weight_on_the_wrong_axis_is_seen(llama, tmp_path):
    base, plan = llama
    graph = written(base, plan, tmp_path / "out")
    opened = open_base_graph(base)
    (square,) = (patch for patch in site_patches(opened, plan, require_fold=False) if str(patch.site) == "attn_write.0")
    changed(graph, square.graph_map.weight, lambda values: values.T)
    for level in certified(base, plan, graph):
        assert level.verdict == "failed"
        assert "attn_write.0" in level.reasons[0]


def test_the_lowest_bit_of_an_edited_weight_counts(llama, tmp_path):
    base, plan = llama
    graph = written(base, plan, tmp_path / "out")
    name = site_patches(open_base_graph(base), plan, require_fold=False)[1].graph_map.weight

    def flip(values):
        values.reshape(-1).view(np.uint32)[5] ^= 1
        return values

    changed(graph, name, flip)
    level, _ = certified(base, plan, graph)
    assert "is not the formula's" in level.reasons[0]


def test_what_is_not_edited_must_not_change(llama, tmp_path):
    base, plan = llama
    graph = written(base, plan, tmp_path / "values")
    names = [patch.graph_map.weight for patch in site_patches(open_base_graph(base), plan, require_fold=False)]
    name = next(entry for entry in open_graph(graph) if entry not in names and "layernorm" in entry)
    changed(graph, name, lambda values: 2 * values)
    level, _ = certified(base, plan, graph)
    assert level.reasons == (f"{name} is not edited, and not what it was in the base",)

    graph = written(base, plan, tmp_path / "node")

    def swap(model):
        (node,) = (node for node in model.graph.node if node.op_type == "Sigmoid" and "layers.0" in str(node))
        node.op_type = "Relu"

    rewritten(graph, swap)
    level, _ = certified(base, plan, graph)
    assert "is not what it was in the base" in level.reasons[0]


def test_an_edit_that_moves_too_little_is_inconclusive(graph_folder, tiny_folder, tmp_path):
    plan = plan_at(tiny_folder("llama")).scaled(1e-5)
    result = bake_onnx(graph_folder("external", "llama"), plan, tmp_path / "out")
    assert result.levels[1].verdict == "inconclusive"
    assert result.path == tmp_path / "out.failed"
    with pytest.raises(Exception, match="a patch that did nothing could pass"):
        result.raise_if_failed()


def test_tensors_alone_run_nothing(graph_folder, tiny_folder, tmp_path, monkeypatch):
    from alignez_bake.onnx_patch import running

    monkeypatch.setattr(running, "runtime_package", lambda: pytest.fail("ONNX Runtime was asked for"))
    result = bake_onnx(
        graph_folder("external", "llama"), plan_at(tiny_folder("llama")), tmp_path / "out", verify="tensors"
    )
    assert [level.level for level in result.levels] == ["tensors"]
    assert result.verdict == "passed"


def test_a_failure_while_writing_leaves_nothing(graph_folder, tiny_folder, tmp_path, monkeypatch):
    def fail(*_arguments):
        raise RuntimeError("stop")

    monkeypatch.setattr(patch_module, "share_file", fail)
    with pytest.raises(RuntimeError, match="stop"):
        bake_onnx(graph_folder("external", "llama"), plan_at(tiny_folder("llama")), tmp_path / "out")
    assert not list(tmp_path.iterdir())
