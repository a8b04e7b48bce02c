"""A patched graph is the hooked model, whoever exported the graph and however the edits went in."""

from __future__ import annotations

from dataclasses import replace

import pytest

from alignez_bake.commands.bake_onnx import bake_onnx
from alignez_bake.edit_plan import EditPlan
from alignez_bake.site import Site
from tests.onnx_patch.graphs import GRAPH, edit_at, hooked_difference, plan_at

TOLERANCE = 1e-5

FOLDED = [
    ("external", "llama", False),
    ("external", "llama", True),
    ("dynamo", "gpt2", None),
    ("dynamo", "opt", True),
    ("dynamo", "gemma2", None),
    ("torchscript", "llama", True),
    ("torchscript", "gpt2", None),
    ("torchscript", "opt", True),
]


def check(base, plan, graph, out, *, compared=False, **settings):
    """`compared`: whether the bake itself looks at the model too, which takes long; these tests always do."""
    result = bake_onnx(graph, plan, out, model=base if compared else None, **settings)
    assert result.verdict == "passed", result.reasons
    error, moved = hooked_difference(base, plan, out / GRAPH)
    assert moved >= 100 * TOLERANCE
    assert error <= TOLERANCE
    return result


@pytest.mark.parametrize(("kind", "model_type", "bias"), FOLDED)
def test_folded_edits_with_constants(graph_folder, tiny_folder, tmp_path, kind, model_type, bias):
    base = tiny_folder(model_type, bias)
    graph, compared = graph_folder(kind, model_type, bias), (kind, model_type) == ("torchscript", "llama")
    for reads in ("output", "input"):
        plan = plan_at(base, reads=reads, constant=True)
        result = check(base, plan, graph, tmp_path / reads, compared=compared, require_fold=True)
        assert {decision.route for decision in result.decisions} == {"fold"}


@pytest.mark.parametrize(("kind", "model_type", "bias"), [FOLDED[1], FOLDED[2], FOLDED[4], FOLDED[5], FOLDED[7]])
@pytest.mark.parametrize("positions", ["all", "last"])
def test_gated_edits(graph_folder, tiny_folder, tmp_path, kind, model_type, bias, positions):
    base = tiny_folder(model_type, bias)
    for number, gate in enumerate(("relu", "tanh")):
        plan = plan_at(base, constant=True, seed=number)
        edits = [replace(edit, gate=gate, positions=positions, strength=-1.5) for edit in plan.edits]
        compared = (gate, positions, kind, model_type) == ("tanh", "last", "dynamo", "gpt2")
        graph = graph_folder(kind, model_type, bias)
        result = check(base, EditPlan(tuple(edits)), graph, tmp_path / gate, compared=compared)
        assert {decision.route for decision in result.decisions} == {"insert"}


@pytest.mark.parametrize("gate", ["identity", "tanh"])
@pytest.mark.parametrize(("kind", "model_type", "bias"), [FOLDED[0], FOLDED[2], FOLDED[3], FOLDED[5], FOLDED[6]])
def test_edits_that_read_the_block(graph_folder, tiny_folder, tmp_path, kind, model_type, bias, gate):
    base = tiny_folder(model_type, bias)
    plan = plan_at(base, reads="block", constant=True)
    edits = tuple(replace(edit, gate=gate) for edit in plan.edits)
    result = check(
        base,
        EditPlan(edits),
        graph_folder(kind, model_type, bias),
        tmp_path / "out",
        compared=model_type == "opt" and gate == "tanh",
    )
    if model_type == "opt" and gate == "tanh":
        # What enters opt's MLP and what it puts out belong to two modules: there is no inserted model to compare with.
        assert "no baked model to compare with" in result.levels[1].to_json()["model"]["not_compared"]


def test_several_edits_and_objectives_at_one_site(graph_folder, tiny_folder, tmp_path):
    """Two chains with dials, side by side: folded where all are linear, and as nodes where one is not."""
    base, graph = tiny_folder("llama", True), graph_folder("external", "llama", True)
    site = Site("mlp_write", 1)
    edits = [
        edit_at(base, site, seed=number, constant=number % 2 == 0, objective=objective, reads=reads)
        for number, (objective, reads) in enumerate(
            [("helpful", "output"), ("humor", "input"), ("helpful", "output"), ("humor", "output"), (None, "input")]
        )
    ]
    weights = {"helpful": 0.7, "humor": -0.4}
    check(base, EditPlan(tuple(edits), weights), graph, tmp_path / "folded", require_fold=True)
    edits[2] = replace(edits[2], gate="relu")
    edits[3] = replace(edits[3], positions="last", strength=1.3)
    result = check(base, EditPlan(tuple(edits), weights), graph, tmp_path / "inserted")
    assert {decision.route for decision in result.decisions} == {"insert"}


@pytest.mark.parametrize("gate", ["identity", "relu"])
@pytest.mark.parametrize("model_type", ["llama", "phi3"])
def test_the_gate_of_an_mlp_which_may_be_half_of_a_fused_map(graph_folder, tiny_folder, tmp_path, model_type, gate):
    base = tiny_folder(model_type)
    edits = tuple(replace(edit, gate=gate) for edit in plan_at(base, ("mlp_gate",), constant=True).edits)
    check(base, EditPlan(edits), graph_folder("dynamo", model_type), tmp_path / "out")


def test_a_shift_alone(graph_folder, tiny_folder, tmp_path):
    base = tiny_folder("llama")
    shifts = tuple(
        replace(edit, left=None, right=None, offset=None, bias=10 * edit.bias)
        for edit in plan_at(base, constant=True).edits
    )
    for name, positions in (("folded", "all"), ("inserted", "last")):
        plan = EditPlan(tuple(replace(edit, positions=positions) for edit in shifts))
        check(base, plan, graph_folder("external", "llama"), tmp_path / name)


def test_dials_are_given_at_the_bake(graph_folder, tiny_folder, tmp_path):
    base = tiny_folder("llama")
    plan = plan_at(base, objective="helpful")
    bake_onnx(graph_folder("external", "llama"), plan, tmp_path / "out", weights={"helpful": 0.3})
    error, moved = hooked_difference(base, plan.with_weights({"helpful": 0.3}), tmp_path / "out" / GRAPH)
    assert error <= TOLERANCE < 100 * TOLERANCE <= moved
    assert hooked_difference(base, plan, tmp_path / "out" / GRAPH)[0] >= 100 * TOLERANCE


@pytest.mark.parametrize(("kind", "model_type", "bias"), [FOLDED[1], FOLDED[2], FOLDED[6]])
def test_edits_of_the_head(graph_folder, tiny_folder, tmp_path, kind, model_type, bias):
    """gpt2's is the embedding: a product and a look-up read the same tensor, and only the product changes."""
    base, graph = tiny_folder(model_type, bias), graph_folder(kind, model_type, bias)
    edit = edit_at(base, Site("lm_head"), reads="input")
    for changes, route in (({}, "fold"), ({"gate": "tanh", "positions": "last"}, "insert")):
        result = check(base, EditPlan((replace(edit, **changes),)), graph, tmp_path / route)
        assert {decision.route for decision in result.decisions} == {route}
