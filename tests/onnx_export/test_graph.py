"""What a graph looks like from outside, and how many nodes an edit costs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import pytest
import torch

from alignez_bake.onnx_export.graph import export_graph
from alignez_bake.onnx_export.opsets import DEFAULT_OPSET
from tests.onnx_export.graphs import operators, operators_below
from tests.tiny_models import MODEL_TYPES

ATTENTION, MLP = "model.layers.0.self_attn.o_proj", "model.layers.1.mlp.down_proj"


def added(graph, base, module):
    """Operators that a module has more than the base's, after checking that it lacks none."""
    more = operators_below(graph.path, module)
    more.subtract(operators_below(base.path, module))
    assert min(more.values()) >= 0
    return Counter({operator: count for operator, count in more.items() if count})


def test_inputs_and_outputs_are_named_and_shaped_as_others_expect(exported):
    graph = exported("llama", "folded").graph
    assert [(entry.name, entry.type, entry.shape) for entry in graph.session.get_inputs()] == [
        ("input_ids", "tensor(int64)", ["batch_size", "sequence_length"]),
        ("attention_mask", "tensor(int64)", ["batch_size", "total_sequence_length"]),
        ("position_ids", "tensor(int64)", ["batch_size", "sequence_length"]),
        *(
            (f"past_key_values.{layer}.{part}", "tensor(float)", ["batch_size", 1, "past_sequence_length", 16])
            for layer in (0, 1)
            for part in ("key", "value")
        ),
    ]
    outputs = graph.session.get_outputs()
    assert [entry.name for entry in outputs] == [
        "logits", "present.0.key", "present.0.value", "present.1.key", "present.1.value",
    ]  # fmt: skip
    assert {entry.type for entry in outputs} == {"tensor(float)"}
    assert outputs[0].shape == ["batch_size", "sequence_length", 320]
    for entry in outputs[1:]:
        assert [entry.shape[0], *entry.shape[1::2]] == ["batch_size", 1, 16]
        assert isinstance(entry.shape[2], str)
    assert graph.names.inputs == tuple(entry.name for entry in graph.session.get_inputs())
    assert graph.names.outputs == tuple(entry.name for entry in outputs)


def test_one_file_of_the_opset_that_holds_no_path_of_this_machine(exported):
    path = exported("llama", "folded").graph.path
    assert [file.name for file in path.parent.glob("model.onnx*")] == ["model.onnx"]
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", DEFAULT_OPSET)]
    contents = path.read_bytes()
    assert str(Path(torch.__file__).parents[1]).encode() not in contents
    assert b".py" not in contents


@pytest.mark.sweep
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_folded_edit_adds_no_node(model_type, exported):
    folded, base = exported(model_type, "folded").graph, exported(model_type, "base").graph
    assert operators(folded.path) == operators(base.path)


def test_an_inserted_gate_is_four_nodes_and_nothing_elsewhere(exported):
    graph, base = exported("llama", "inserted").graph, exported("llama", "folded").graph
    gate = added(graph, base, ATTENTION)
    assert gate == {"MatMul": 2, "Relu": 1, "Add": 1}
    last = added(graph, base, MLP)
    assert operators(graph.path).total() - operators(base.path).total() == gate.total() + last.total()


def test_offset_bias_and_the_last_position_are_few_nodes(exported):
    """Four, one each for s and c, none for the strength, and for `last` a mask that all sites share and a product."""
    graph, base = exported("llama", "inserted").graph, exported("llama", "folded").graph
    assert added(graph, base, MLP) == {"MatMul": 2, "Tanh": 1, "Add": 1 + 2, "OneHot": 1, "Mul": 1}


def test_the_model_is_left_as_it_was(tmp_path, tiny_model):
    model = tiny_model("mixtral", bias=False, overrides={"num_hidden_layers": 1})
    before = model.config.to_dict(), model.config._experts_implementation
    model.register_forward_pre_hook(stop)
    with pytest.raises(RuntimeError, match="stop here"):
        export_graph(model, tmp_path / "model.onnx")
    assert (model.config.to_dict(), model.config._experts_implementation) == before
    assert not list(tmp_path.iterdir())


def stop(_module, _arguments):
    raise RuntimeError("stop here")
