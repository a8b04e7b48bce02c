"""What the optimiser refuses, and what it leaves alone."""

from __future__ import annotations

import onnx
import onnx_ir
import pytest

from alignez_bake.errors import BadInputError
from alignez_bake.onnx_optimise.optimise import optimise_graph
from tests.onnx_export.graphs import Graph, prompts


def changed(source, target, change):
    """A copy of a graph with something changed."""
    model = onnx_ir.load(source)
    change(model.graph)
    onnx_ir.save(model, target)
    return target


def first(graph, operator):
    return next(node for node in graph if node.op_type == operator)


def test_external_data_stay_external_and_equal(optimised, tmp_path):
    source, target = tmp_path / "plain.onnx", tmp_path / "fused.onnx"
    onnx_ir.save(onnx_ir.load(optimised("llama", "inserted", 23).plain.path), source, external_data="plain.onnx_data")
    optimise_graph(source, target)
    stored = (tmp_path / "plain.onnx_data").stat().st_size
    assert (tmp_path / "fused.onnx_data").stat().st_size == pytest.approx(stored, rel=0.02)
    external = [entry for entry in onnx.load(target, load_external_data=False).graph.initializer if entry.external_data]
    assert {entry.external_data[0].value for entry in external} == {"fused.onnx_data"}
    batch = prompts(1)
    graph = Graph(target, optimised("llama", "inserted", 23).plain.names)
    inside = optimised("llama", "inserted", 23).optimised
    logits, _ = graph.step(batch, graph.empty_cache(1))
    assert logits.equal(inside.step(batch, inside.empty_cache(1))[0])


def test_other_forms_of_attention_are_refused_by_layer_and_stay(optimised, tmp_path):
    """One layer whose probabilities are something else than a softmax of its scores."""
    plain = optimised("gemma2").plain

    def cubed(graph):
        softmax = first(graph, "Softmax")
        node = onnx_ir.node("Mul", [softmax.outputs[0], softmax.outputs[0]])
        node.outputs[0].name, node.outputs[0].type = "squared", softmax.outputs[0].type
        user, index = softmax.outputs[0].uses()[0]
        graph.insert_after(softmax, node)
        user.replace_input_with(index, node.outputs[0])

    source = changed(plain.path, tmp_path / "odd.onnx", cubed)
    result = optimise_graph(source, tmp_path / "fused.onnx")
    assert result.fused["Attention"] == 1
    (reason,) = result.reasons
    assert reason == "attention of layer 0: the values are not multiplied by a softmax"
    batch = prompts(4)
    graphs = [Graph(path, plain.names) for path in (source, tmp_path / "fused.onnx")]
    expected, found = (graph.step(batch, graph.empty_cache(4))[0] for graph in graphs)
    real = batch.attention_mask.bool()
    assert found[real].allclose(expected[real], atol=1e-4)


def test_a_rotation_the_other_way_is_not_fused(optimised, tmp_path):
    """[b, -a] instead of [-b, a]: the same nodes, another function."""

    def exchanged(graph):
        negated = first(graph, "Neg")
        joined, _ = negated.outputs[0].uses()[0]
        left, right = joined.inputs
        joined.replace_input_with(0, right)
        joined.replace_input_with(1, left)

    source = changed(optimised("gemma2").plain.path, tmp_path / "odd.onnx", exchanged)
    result = optimise_graph(source, tmp_path / "fused.onnx")
    assert result.fused["RotaryEmbedding"] == 3


def test_a_graph_without_anything_to_fuse_is_an_error(tmp_path):
    """Never a copy that is called optimised."""
    shape = ["b", 1, "t", 4]
    past, new = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in ("past", "new"))
    outs = [onnx.helper.make_tensor_value_info(f"present.0.{part}", 1, ["b", 1, "u", 4]) for part in ("key", "value")]
    nodes = [onnx.helper.make_node("Concat", ["past", "new"], [out.name], axis=2) for out in outs]
    graph = onnx.helper.make_graph(nodes, "g", [past, new], outs)
    source, target = tmp_path / "plain.onnx", tmp_path / "fused.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10), source)
    with pytest.raises(BadInputError, match=r"nothing could be fused \(attention of layer 0: the cache is read by 0"):
        optimise_graph(source, target)
    assert not target.exists()


def test_a_graph_that_is_optimised_already_is_an_error(optimised, tmp_path):
    """Its operators are there, and none of them is new; attention that is done is no reason."""
    with pytest.raises(BadInputError, match="nothing could be fused: use the graph as it is"):
        optimise_graph(optimised("llama", "inserted", 23).optimised.path, tmp_path / "again.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("opset", "outputs", "message"), [(17, "present.0.key", "opset 17"), (20, "y", "no outputs")])
def test_graphs_that_are_not_ours_are_refused(opset, outputs, message, tmp_path):
    x = onnx.helper.make_tensor_value_info("x", 1, [1])
    out = onnx.helper.make_tensor_value_info(outputs, 1, [1])
    extra = onnx.helper.make_tensor_value_info("present.0.value", 1, [1])
    outs = [out, extra] if outputs != "y" else [out]
    nodes = [onnx.helper.make_node("Identity", ["x"], [entry.name]) for entry in outs]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "g", [x], outs),
        opset_imports=[onnx.helper.make_opsetid("", opset)],
        ir_version=9,
    )
    onnx.save(model, tmp_path / "plain.onnx")
    with pytest.raises(BadInputError, match=message):
        optimise_graph(tmp_path / "plain.onnx", tmp_path / "fused.onnx")


def test_a_target_that_exists_is_not_written_over(optimised, tmp_path):
    target = tmp_path / "there.onnx"
    target.write_bytes(b"mine")
    with pytest.raises(BadInputError, match="exists"):
        optimise_graph(optimised("gpt2", "base", 23).plain.path, target)
    assert target.read_bytes() == b"mine"
