"""Maps are found in graphs of any exporter, by what each of them leaves of the modules' names."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest

from alignez_bake.commands.bake_onnx import bake_onnx
from alignez_bake.edit_plan import EditPlan
from alignez_bake.errors import BadInputError
from alignez_bake.onnx_optimise.optimise import optimise_graph
from alignez_bake.onnx_patch.base_graph import open_base_graph
from alignez_bake.onnx_patch.graph_map import block_input, find_map
from alignez_bake.site import Site
from tests.onnx_patch.graphs import GRAPH, edit_at, hooked_difference, plan_at, rewritten

SITE = Site("mlp_write", 1)


def test_metadata_name_the_module(graph_folder):
    graph = open_base_graph(graph_folder("external", "llama", True))
    found = find_map(graph, SITE)
    assert graph.model.graph.node[found.place].op_type == "MatMul"
    assert (found.transposed, found.fused, found.d_in, found.dtype) == (True, 32, 64, "F32")
    assert found.bias == "model.model.layers.1.mlp.down_proj.bias"
    assert found.output == graph.model.graph.node[found.bias_place].output[0]


@pytest.mark.parametrize(
    ("model_type", "bias", "site", "node", "transposed"),
    [
        ("llama", True, SITE, "/model/model/layers.1/mlp/down_proj/MatMul", True),
        ("gpt2", None, SITE, "/model/transformer/h.1/mlp/c_proj/Gemm", True),
        ("opt", True, SITE, "/model/decoder/layers.1/fc2/Gemm", False),
        ("opt", True, Site("attn_write", 0), "/model/decoder/layers.0/self_attn/out_proj/MatMul", True),
    ],
)
def test_paths_of_torchscript_name_the_module(graph_folder, model_type, bias, site, node, transposed):
    graph = open_base_graph(graph_folder("torchscript", model_type, bias))
    found = find_map(graph, site)
    assert graph.model.graph.node[found.place].name == node
    assert found.transposed == transposed
    assert found.bias is not None


def test_names_of_weights_are_enough(own_graph):
    """As an optimiser leaves it that renames nodes and drops metadata."""
    base = own_graph("dynamo", "gpt2")

    def strip(model):
        for number, node in enumerate(model.graph.node):
            node.name = f"node_{number}"
            del node.metadata_props[:]

    before = find_map(open_base_graph(base), SITE)
    rewritten(base / GRAPH, strip)
    assert find_map(open_base_graph(base), SITE) == before


@pytest.mark.parametrize(("model_type", "bias"), [("llama", True), ("gpt2", None), ("opt", True)])
def test_exports_of_optimum(graph_folder, tiny_folder, tmp_path, model_type, bias):
    """They leave out the prefixes of some modules, and may order their axes by names of their own."""
    base, graph = tiny_folder(model_type, bias), graph_folder("optimum", model_type, bias)
    folded = plan_at(base, constant=True)
    last = EditPlan(tuple(replace(edit, gate="tanh", positions="last") for edit in plan_at(base, reads="block").edits))
    for name, plan, model in (("folded", folded, base), ("last", last, None)):
        result = bake_onnx(graph, plan, tmp_path / name, model=model)
        assert result.verdict == "passed", result.reasons
        error, moved = hooked_difference(base, plan, tmp_path / name / GRAPH)
        assert moved >= 1e-3
        assert error <= 1e-5


@pytest.mark.parametrize("kind", ["builder", "builder-int4"])
def test_the_builder_of_onnxruntime_genai(graph_folder, tiny_folder, tmp_path, kind):
    """Its graphs have no config.json, call attention by another name, and may hold maps of four bits."""
    base, graph = tiny_folder("llama"), graph_folder(kind, "llama")
    plans = {
        "output": plan_at(base, constant=True),
        "input": plan_at(base, reads="input", constant=True),
        "block": plan_at(base, reads="block"),
        "gated": EditPlan(tuple(replace(edit, gate="tanh", positions="last") for edit in plan_at(base).edits)),
    }
    for name, plan in plans.items():
        result = bake_onnx(graph, plan, tmp_path / name, model=base)
        assert result.verdict == "passed", result.reasons
        folds = kind == "builder" and name in ("output", "input")
        assert {decision.route for decision in result.decisions} == ({"fold"} if folds else {"insert"})
        assert json.loads((tmp_path / name / "genai_config.json").read_text())["model"]["type"] == "llama"
        assert "onnxruntime_genai" in (tmp_path / name / "README.md").read_text()


def test_quantised_maps_are_never_folded(graph_folder, tiny_folder, tmp_path):
    with pytest.raises(BadInputError, match=r"4 of 4 sites cannot be folded.*the map's weight is quantised"):
        bake_onnx(
            graph_folder("builder-int4", "llama"), plan_at(tiny_folder("llama")), tmp_path / "out", require_fold=True
        )


def test_the_builder_spells_biases_as_adds(graph_folder, tiny_folder, tmp_path):
    base, graph = tiny_folder("qwen2"), graph_folder("builder", "qwen2")
    result = bake_onnx(graph, plan_at(base, constant=True), tmp_path / "out", model=base)
    assert result.verdict == "passed", result.reasons


def test_fused_operators_leave_maps_alone_but_may_swallow_a_bias(own_graph, tiny_folder, tmp_path):
    base = tiny_folder("llama")
    graph = tmp_path / "fused"
    shutil.copytree(own_graph("external", "llama"), graph, ignore=shutil.ignore_patterns("*.onnx*"))
    optimise_graph(tmp_path / "base" / GRAPH, graph / GRAPH)
    plan = plan_at(base, constant=True)
    bake_onnx(graph, plan, tmp_path / "folded", model=base)
    error, moved = hooked_difference(base, plan, tmp_path / "folded" / GRAPH)
    assert moved >= 1e-3
    assert error <= 1e-5

    def swallow(model):
        for node in model.graph.node:
            if node.op_type == "SkipSimplifiedLayerNormalization":
                node.input.append(node.input[2])

    rewritten(graph / GRAPH, swallow)
    with pytest.raises(BadInputError, match="its bias was fused into SkipSimplifiedLayerNormalization"):
        bake_onnx(graph, plan, tmp_path / "out")


@pytest.mark.parametrize("kind", ["external", "torchscript"])
def test_the_value_that_enters_a_block(graph_folder, kind):
    graph = open_base_graph(graph_folder(kind, "llama", True))
    for site, module in ((Site("attn_write", 0), "input_layernorm"), (SITE, "post_attention_layernorm")):
        name, width = block_input(graph, site)
        assert width == 32
        layer = f"layers.{site.layer}.{module}"
        assert any(path.endswith(layer) for path in graph.module_paths[graph.producers[name]])


def test_no_node_and_several_are_named(own_graph, tiny_folder, tmp_path):
    base = own_graph("torchscript", "llama", True)
    plan = EditPlan((edit_at(tiny_folder("llama", True), SITE),))
    wanted = "/model/model/layers.1/mlp/down_proj/MatMul"

    def rename(to):
        def change(model):
            for node in model.graph.node:
                if node.name == "/model/model/layers.0/mlp/up_proj/MatMul":
                    node.name = to

        return change

    rewritten(base / GRAPH, rename(wanted.replace("MatMul", "MatMul_1")))
    with pytest.raises(BadInputError, match=r"mlp_write.1: layers.1.mlp.down_proj was looked for, and 2 maps have it"):
        bake_onnx(base, plan, tmp_path / "out")

    def hide(model):
        for node in model.graph.node:
            node.name = node.name.replace("layers.1/mlp/down_proj", "somewhere")

    rewritten(base / GRAPH, hide)
    rewritten(base / GRAPH, rename("/elsewhere/MatMul"))
    with pytest.raises(BadInputError, match=r"MatMul, Gemm or MatMulNBits of layers.1.mlp.down_proj was looked for"):
        bake_onnx(base, plan, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
