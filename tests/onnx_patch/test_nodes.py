"""Which nodes a patch adds, and which values it takes apart."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import pytest

from alignez_bake.commands.bake_onnx import bake_onnx
from alignez_bake.edit_plan import EditPlan
from alignez_bake.errors import BadInputError
from alignez_bake.onnx_graph.initialisers import open_graph
from alignez_bake.site import Site
from tests.onnx_patch.graphs import GRAPH, edit_at, hooked_difference, operators, plan_at, rewritten

SITE = Site("mlp_write", 1)
TOLERANCE = 1e-5


def added(graph_folder, plan, out, *, bias=None, kind="external", model_type="llama") -> Counter[str]:
    base = graph_folder(kind, model_type, bias)
    result = bake_onnx(base, plan, out)
    assert result.verdict == "passed", result.reasons
    more = Counter(operators(out / GRAPH))
    more.subtract(operators(base / GRAPH))
    assert result.levels[0].to_json()["added_nodes"] == more.total()
    return +more


def one(base, **changes) -> EditPlan:
    edit = edit_at(base, SITE, constant=True)
    return EditPlan((replace(edit, **changes),))


def test_a_fold_adds_no_node(graph_folder, tiny_folder, tmp_path):
    plan = plan_at(tiny_folder("llama"))
    assert added(graph_folder, plan, tmp_path / "out").total() == 0


def test_a_constant_goes_into_the_bias_that_is_there(graph_folder, tiny_folder, tmp_path):
    for kind, model_type, bias in (("external", "llama", True), ("dynamo", "gpt2", None)):
        plan = plan_at(tiny_folder(model_type, bias), constant=True)
        more = added(graph_folder, plan, tmp_path / model_type, bias=bias, kind=kind, model_type=model_type)
        assert more.total() == 0


def test_a_constant_without_a_bias_is_one_add(graph_folder, tiny_folder, tmp_path):
    assert added(graph_folder, one(tiny_folder("llama")), tmp_path / "out") == {"Add": 1}


@pytest.mark.parametrize(
    ("changes", "nodes"),
    [
        ({"gate": "relu", "offset": None, "bias": None}, {"MatMul": 2, "Relu": 1, "Add": 1}),
        ({"gate": "tanh", "offset": None, "bias": None, "strength": -2.0}, {"MatMul": 2, "Tanh": 1, "Add": 1}),
        ({"gate": "relu", "offset": None}, {"MatMul": 2, "Relu": 1, "Add": 2}),
        ({"gate": "relu"}, {"MatMul": 2, "Relu": 1, "Add": 3}),
        (
            {"gate": "relu", "positions": "last"},
            {"MatMul": 2, "Relu": 1, "Add": 3, "Mul": 1, "Shape": 1, "OneHot": 1},
        ),
    ],
)
def test_nodes_of_an_inserted_edit(graph_folder, tiny_folder, tmp_path, changes, nodes):
    assert added(graph_folder, one(tiny_folder("llama"), **changes), tmp_path / "out") == nodes


@pytest.mark.parametrize(
    ("kind", "model_type", "bias", "mask"),
    [
        ("external", "llama", None, {"Shape": 1, "OneHot": 1}),
        ("torchscript", "gpt2", None, {"Shape": 1, "ConstantOfShape": 1, "Pad": 1, "Reshape": 1}),
    ],
)
def test_sites_share_the_mask_of_the_last_row(graph_folder, tiny_folder, tmp_path, kind, model_type, bias, mask):
    """Against the same edits at all positions: the nodes of the mask once, and a product at each of four sites."""
    plan = plan_at(tiny_folder(model_type, bias))
    found = {}
    for positions in ("all", "last"):
        edits = tuple(replace(edit, gate="relu", positions=positions) for edit in plan.edits)
        found[positions] = added(
            graph_folder, EditPlan(edits), tmp_path / positions, bias=bias, kind=kind, model_type=model_type
        )
    assert found["last"] - found["all"] == {**mask, "Mul": 4}


def test_a_strength_or_a_dial_of_zero_adds_nothing(graph_folder, tiny_folder, tmp_path):
    edit = replace(edit_at(tiny_folder("llama"), SITE, objective="humor"), gate="relu")
    other = edit_at(tiny_folder("llama"), Site("mlp_write", 0))
    plan = EditPlan((edit, other), {"humor": 0.0})
    assert added(graph_folder, plan, tmp_path / "out").total() == 0


def test_require_fold_refuses_nodes_by_site_and_reason(graph_folder, tiny_folder, tmp_path):
    base = tiny_folder("llama")
    for change, reason in (
        ({"gate": "relu"}, "gate 'relu' is not linear"),
        ({"positions": "last"}, "only the last position is edited"),
    ):
        with pytest.raises(BadInputError, match=f"1 of 1 sites cannot be folded.*mlp_write.1: {reason}"):
            bake_onnx(graph_folder("external", "llama"), one(base, **change), tmp_path / "out", require_fold=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["external", "dynamo"])
def test_a_weight_that_two_nodes_share_is_taken_apart(own_graph, tiny_folder, tmp_path, kind):
    """Two equal weights are one initialiser for an exporter that merges them; the edit is of one map."""
    base = own_graph(kind, "llama", True)
    before = open_graph(base / GRAPH)
    shared: dict[str, str] = {}

    def merge(model):
        downs = {}
        for node in model.graph.node:
            for layer in (0, 1):
                scopes = "".join(entry.value for entry in node.metadata_props)
                if f"layers.{layer}.mlp.down_proj'" in scopes:
                    downs[layer, node.op_type] = node
        for operator in ("MatMul", "Add"):
            shared[operator] = downs[0, operator].input[1]
            downs[1, operator].input[1] = downs[0, operator].input[1]

    rewritten(base / GRAPH, merge)
    result = bake_onnx(base, EditPlan((edit_at(tiny_folder("llama", True), SITE, constant=True),)), tmp_path / "out")
    assert result.verdict == "passed", result.reasons
    after = open_graph(tmp_path / "out" / GRAPH)
    for name in shared.values():
        assert before.read_bytes(name) == after.read_bytes(name)
    assert set(after) - set(before) == {f"alignez.{SITE}.weight", f"alignez.{SITE}.bias"}
    assert len(operators(tmp_path / "out" / GRAPH)) == len(operators(base / GRAPH))


def test_a_transpose_before_the_map_goes_with_its_weight(own_graph, tiny_folder, tmp_path):
    """As exporters leave it that do not compute with weights."""
    base_model, base = tiny_folder("llama"), own_graph("dynamo", "llama")

    def turn(model):
        from onnx import numpy_helper

        nodes = list(model.graph.node)
        for place, node in enumerate(nodes):
            scopes = "".join(entry.value for entry in node.metadata_props)
            if node.op_type == "MatMul" and "layers.1.mlp.down_proj'" in scopes:
                name = node.input[1]
                (tensor,) = (entry for entry in model.graph.initializer if entry.name == name)
                turned = np.ascontiguousarray(numpy_helper.to_array(tensor).T)
                tensor.CopyFrom(numpy_helper.from_array(turned, name))
                node.input[1] = "turned"
                nodes.insert(place, onnx.helper.make_node("Transpose", [name], ["turned"], perm=[1, 0]))
                break
        kept = onnx.GraphProto()
        kept.node.extend(nodes)
        del model.graph.node[:]
        model.graph.node.extend(kept.node)

    rewritten(base / GRAPH, turn)
    plan = EditPlan((edit_at(base_model, SITE),))
    result = bake_onnx(base, plan, tmp_path / "out", model=base_model)
    assert result.verdict == "passed", result.reasons
    error, moved = hooked_difference(base_model, plan, tmp_path / "out" / GRAPH)
    assert moved >= 100 * TOLERANCE
    assert error <= TOLERANCE
    assert len(operators(tmp_path / "out" / GRAPH)) == len(operators(base / GRAPH)) - 1
