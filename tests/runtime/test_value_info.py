"""Inputs and outputs as the file declares them: what the session has, known before there is one."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from alignez_bake.errors import BadInputError
from alignez_bake.runtime import open_session
from alignez_bake.runtime.graph_file import read_graph_file
from alignez_bake.runtime.signature import Signature, check_agreement
from alignez_bake.runtime.value_info import TYPE_NAMES, Argument, session_argument
from tests.runtime.graphs import VOCABULARY, causal_model, saved


@pytest.mark.parametrize("cache_dtype", ["float32", "float16", "bfloat16"])
def test_the_file_says_what_the_session_has(tmp_path, cache_dtype):
    path = saved(causal_model(cache_dtype=cache_dtype), tmp_path)
    graph, session = read_graph_file(path), open_session(path, ["cpu"]).session
    assert list(graph.inputs) == list(map(session_argument, session.get_inputs()))
    assert list(graph.outputs) == list(map(session_argument, session.get_outputs()))
    assert graph.outputs[0] == Argument("logits", "tensor(float)", ("batch", "new", VOCABULARY))


@pytest.mark.parametrize("number", sorted(TYPE_NAMES))
def test_types_have_the_names_that_onnx_runtime_gives_them(tmp_path, number):
    value = helper.make_tensor_value_info("x", number, [None, 3])
    twin = helper.make_tensor_value_info("y", number, [None, 3])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [value], [twin])
    path = saved(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path)
    found = read_graph_file(path).inputs
    assert found == (Argument("x", TYPE_NAMES[number], (None, 3)),)
    if "complex" not in TYPE_NAMES[number]:  # in the standard, and nowhere in ONNX Runtime
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        assert tuple(map(session_argument, session.get_inputs())) == found


def test_an_axis_with_an_empty_name_is_open(tmp_path):
    model = causal_model()
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = ""
    path = saved(model, tmp_path)
    found = read_graph_file(path).inputs[0]
    assert found.shape == ("batch", None)
    assert found == session_argument(open_session(path, ["cpu"]).session.get_inputs()[0])


def test_what_is_no_tensor_is_called_so(tmp_path):
    model = causal_model()
    model.graph.input[0].type.CopyFrom(
        helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.INT64, [None, None]))
    )
    path = saved(model, tmp_path)
    assert read_graph_file(path).inputs[0] == Argument("input_ids", "no tensor", None)
    with pytest.raises(BadInputError, match="input_ids is a no tensor of shape unknown"):
        open_session(path, ["cpu"])


@pytest.mark.parametrize("sparse", [False, True])
def test_an_initialiser_that_is_listed_as_an_input_is_none(tmp_path, sparse):
    """Before IR version 4 every initialiser had to be; a caller need not give it."""
    model = causal_model()
    model.graph.input.append(helper.make_tensor_value_info("K0", TensorProto.FLOAT, None))
    if sparse:
        dense = next(tensor for tensor in model.graph.initializer if tensor.name == "K0")
        values = numpy_helper.to_array(dense).reshape(-1)
        sparse_tensor = model.graph.sparse_initializer.add(dims=list(dense.dims))
        sparse_tensor.values.CopyFrom(numpy_helper.from_array(values, "K0"))
        sparse_tensor.indices.CopyFrom(numpy_helper.from_array(np.arange(len(values))))
        model.graph.initializer.remove(dense)
    names = [argument.name for argument in read_graph_file(saved(model, tmp_path)).inputs]
    assert "K0" not in names
    assert names[:3] == ["input_ids", "attention_mask", "position_ids"]


def refuses_to_open(monkeypatch):
    def opened(*_, **__):
        raise AssertionError("the weights were loaded")

    monkeypatch.setattr(onnxruntime, "InferenceSession", opened)


def test_a_wrong_signature_is_refused_before_anything_is_loaded(tmp_path, monkeypatch):
    model = causal_model()
    model.graph.output[0].name = "scores"
    refuses_to_open(monkeypatch)
    with pytest.raises(BadInputError, match="gives 'scores, "):
        open_session(saved(model, tmp_path), ["cpu"])


def test_logits_whose_shape_the_file_leaves_open_are_known_to_the_session(tmp_path):
    model = causal_model()
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("logits", TensorProto.FLOAT, None))
    path = saved(model, tmp_path)
    assert read_graph_file(path).outputs[0].shape is None
    assert open_session(path, ["cpu"]).signature.vocabulary == VOCABULARY


def test_another_graph_than_the_one_that_was_checked_is_refused(tmp_path, monkeypatch):
    """Changed between the check and the loading: 16-bit keys under the name of 32-bit ones."""
    path, other = saved(causal_model(), tmp_path), saved(causal_model(cache_dtype="float16"), tmp_path, "other")
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda _, *args, **named: real(str(other), *args, **named))
    with pytest.raises(BadInputError, match="opened another graph than the one that was checked"):
        open_session(path, ["cpu"])


def test_a_session_may_know_the_vocabulary_and_nothing_else_more():
    check_agreement(Signature(frozenset(), (), None), Signature(frozenset(), (), 7), "m")
    for other in (Signature(frozenset(), (), 8), Signature(frozenset({"input_ids"}), (), 7)):
        with pytest.raises(BadInputError, match="another graph"):
            check_agreement(Signature(frozenset(), (), 7), other, "m")


def test_every_cut_of_the_file_is_refused_or_read(tmp_path):
    """No prefix of a file makes the walker fail in another way than with a message."""
    whole = causal_model().SerializeToString()
    path = tmp_path / "model.onnx"
    refused = 0
    for size in range(1, len(whole), 97):
        path.write_bytes(whole[:size])
        try:
            read_graph_file(path)
        except BadInputError:
            refused += 1
    assert refused > 10
    path.write_bytes(whole)
    assert onnx.load_model(str(path)).graph.name == "toy"
    assert len(read_graph_file(path).inputs) == 7
