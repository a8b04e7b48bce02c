"""Attention of plain graphs: from opset 23 on it holds the cache, where it is what the operator computes."""

from __future__ import annotations

import onnx
import onnx_ir
import pytest
import torch

from alignez_bake.onnx_export.attention import NoMatchError, holds_cache, match
from alignez_bake.onnx_export.attention_layers import fuse_attention, layers_of
from alignez_bake.onnx_export.graph import export_graph
from tests.onnx_export.graphs import TOLERANCE, Graph, operators, prompts
from tests.running import load, relative
from tests.tiny_models import MODEL_TYPES

LAYERS = 2
CAPPED = ("gemma2",)
OTHERWISE = ("deepseek_v3", "gpt_oss")
"""Attention that is written in another way, which stays as it is; `tests/onnx_optimise` has the reasons."""


def copies_of_heads(path):
    """The nodes that copy heads of keys or values for their group of queries."""
    nodes = onnx.load(path, load_external_data=False).graph.node
    return [
        node
        for node in nodes
        if node.op_type == "Expand" and any("self_attn" in entry.value for entry in node.metadata_props)
    ]


def attention_nodes(path):
    return [node for node in onnx.load(path, load_external_data=False).graph.node if node.op_type == "Attention"]


@pytest.mark.parametrize(
    "model_type",
    [pytest.param(model_type, marks=() if model_type == "llama" else pytest.mark.sweep) for model_type in MODEL_TYPES],
)
def test_every_layer_that_can_holds_its_cache(model_type, exported):
    path = exported(model_type, "base").graph.path
    model = onnx_ir.load(path)
    layers = layers_of(model.graph)
    assert len(layers) == LAYERS
    stays = model_type in (*CAPPED, *OTHERWISE)
    assert [holds_cache(*layer) for layer in layers] == [not stays] * LAYERS
    for index, node in enumerate([] if stays else attention_nodes(path)):
        assert list(node.input[4:6]) == [f"past_key_values.{index}.{part}" for part in ("key", "value")]
        assert list(node.output[1:]) == [f"present.{index}.{part}" for part in ("key", "value")]


def test_heads_are_not_copied_and_no_node_is_left_over(exported):
    """llama's tiny model has one head of keys for several of queries, as the graph of opset 20 shows below."""
    path = exported("llama", "folded").graph.path
    assert operators(path)["Attention"] == LAYERS
    graph = onnx.load(path).graph
    assert not copies_of_heads(path)
    used = {name for node in graph.node for name in node.input} | {entry.name for entry in graph.output}
    assert {name for node in graph.node for name in node.output if name} <= used
    assert {entry.name for entry in graph.initializer} <= used


def test_scores_with_a_cap_stay_written_out_unless_asked_for(exported):
    model = onnx_ir.load(exported("gemma2", "base").graph.path)
    before = len(model.graph)
    plain = fuse_attention(model, softcap=False)
    assert plain.replaced == 0
    assert plain.reasons == tuple(f"attention of layer {index}: its scores are capped" for index in range(LAYERS))
    assert len(model.graph) == before
    fused = fuse_attention(model, softcap=True)
    assert (fused.replaced, fused.reasons) == (LAYERS, ())
    assert len(model.graph) < before


def test_what_is_done_is_neither_done_again_nor_a_reason(exported):
    model = onnx_ir.load(exported("llama", "base").graph.path)
    again = fuse_attention(model, softcap=True)
    assert (again.replaced, again.reasons) == (0, ())


def test_a_cache_that_comes_from_elsewhere_is_not_held(exported):
    """The operator's keys with the values of another layer."""
    model = onnx_ir.load(exported("llama", "base").graph.path)
    (keys, _), (_, values) = layers_of(model.graph)
    assert not holds_cache(keys, values)
    with pytest.raises(NoMatchError):
        match(keys, values)


@pytest.mark.sweep
def test_opset_20_has_no_such_operator_and_gives_the_same(exported, tiny_folder, tmp_path):
    newest = exported("llama", "base").graph
    path = tmp_path / "model.onnx"
    names = export_graph(load(tiny_folder("llama"), torch.float32), path, opset=20)
    assert operators(path)["Attention"] == 0
    assert len(copies_of_heads(path)) == 2 * LAYERS  # keys and values
    oldest, batch = Graph(path, names), prompts(4)
    real = batch.attention_mask.bool()
    expected, found = (graph.step(batch, graph.empty_cache(4))[0][real] for graph in (oldest, newest))
    assert relative(found, expected) <= TOLERANCE
