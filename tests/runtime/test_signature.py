"""Graphs whose inputs or outputs are not those of a causal model with a cache."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from alignez_bake.errors import BadInputError
from alignez_bake.runtime import open_session
from alignez_bake.runtime.signature import CacheTensor
from tests.runtime.graphs import HEADS, LAYERS, SIZE, VOCABULARY, causal_model, saved


def renamed(model, old: str, new: str) -> None:
    """Give a value of the graph another name, everywhere."""
    for value in [*model.graph.input, *model.graph.output]:
        value.name = new if value.name == old else value.name
    for node in model.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]


def without(model, name: str, constant: np.ndarray) -> None:
    """Take an input away; a constant stands in for it."""
    from onnx import numpy_helper

    kept = [value for value in model.graph.input if value.name != name]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    model.graph.initializer.append(numpy_helper.from_array(constant, name))


def refused(model, folder, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        open_session(saved(model, folder), ["cpu"])


def test_the_whole_signature_is_read(tmp_path):
    signature = open_session(saved(causal_model(), tmp_path), ["cpu"]).signature
    assert signature.tokens == {"input_ids", "attention_mask", "position_ids"}
    assert signature.vocabulary == VOCABULARY
    assert signature.cache == tuple(
        CacheTensor(f"past_key_values.{layer}.{part}", f"present.{layer}.{part}", 1, HEADS, SIZE)
        for layer in range(LAYERS)
        for part in ("key", "value")
    )
    assert signature.cache[0].shape(4, 7) == [4, HEADS, 7, SIZE]


def test_a_graph_without_a_cache_is_refused(tmp_path):
    model = causal_model()
    for layer in range(LAYERS):
        for part in ("key", "value"):
            without(model, f"past_key_values.{layer}.{part}", np.zeros((1, HEADS, 0, SIZE), dtype=np.float32))
    refused(model, tmp_path, "so it has no cache: export the model with its cache")


@pytest.mark.parametrize("name", ["input_ids", "attention_mask", "position_ids", "past_key_values.1.value"])
def test_an_input_by_another_name_is_refused(tmp_path, name):
    model = causal_model()
    renamed(model, name, "cache_position")
    refused(model, tmp_path, "takes 'cache_position', which this runner does not know")


def test_a_name_with_control_characters_is_shown_escaped(tmp_path):
    model = causal_model()
    renamed(model, "position_ids", "x\n\x1b[31m")
    with pytest.raises(BadInputError) as caught:
        open_session(saved(model, tmp_path), ["cpu"])
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("absent", ["attention_mask", "position_ids"])
def test_one_token_input_may_be_absent(tmp_path, absent):
    model = causal_model()
    without(model, absent, np.array([[1]]))
    assert absent not in open_session(saved(model, tmp_path), ["cpu"]).signature.tokens


def test_two_may_not(tmp_path):
    model = causal_model()
    for absent in ("attention_mask", "position_ids"):
        without(model, absent, np.array([[1]]))
    refused(model, tmp_path, "lacks the inputs 'attention_mask, position_ids'")


def test_token_inputs_are_int64(tmp_path):
    model = causal_model()
    model.graph.input[1].type.tensor_type.elem_type = TensorProto.FLOAT
    refused(model, tmp_path, r"attention_mask is a tensor\(float\)")


@pytest.mark.parametrize(
    ("old", "new"), [("logits", "scores"), ("present.1.value", "present.2.value"), ("present.0.key", "new.0.key")]
)
def test_an_output_by_another_name_is_refused(tmp_path, old, new):
    model = causal_model()
    renamed(model, old, new)
    refused(model, tmp_path, "and should give 'logits, present.0.key, present.0.value, present.1.key")


def test_outputs_in_another_order_are_refused(tmp_path):
    model = causal_model()
    outputs = list(model.graph.output)
    del model.graph.output[:]
    model.graph.output.extend([outputs[0], outputs[2], outputs[1], *outputs[3:]])
    refused(model, tmp_path, "gives 'logits, present.0.value, present.0.key")


def test_a_cache_that_begins_at_layer_1_is_refused(tmp_path):
    model = causal_model()
    for part in ("key", "value"):
        renamed(model, f"past_key_values.1.{part}", f"past_key_values.2.{part}")
    refused(model, tmp_path, "layers from 0, key before value, is the order")


def test_an_output_too_many_is_refused(tmp_path):
    model = causal_model()
    model.graph.output.append(helper.make_tensor_value_info("summed", TensorProto.FLOAT, None))
    refused(model, tmp_path, "gives 'logits, .*summed', and should give")


@pytest.mark.parametrize(("axis", "meaning"), [(0, "batch"), (2, "length")])
def test_a_cache_of_fixed_size_is_refused(tmp_path, axis, meaning):
    model = causal_model()
    model.graph.input[3].type.tensor_type.shape.dim[axis].dim_value = 5
    refused(model, tmp_path, rf"axis {axis} \({meaning}\) of past_key_values.0.key is fixed to 5")


@pytest.mark.parametrize("axis", [1, 3])
def test_heads_and_size_must_be_known(tmp_path, axis):
    model = causal_model()
    for value in model.graph.input[3:]:
        value.type.tensor_type.shape.dim[axis].dim_param = "open"
    refused(model, tmp_path, "with numbers for heads and size is needed")


def test_logits_that_numpy_cannot_read_are_refused(tmp_path):
    model = causal_model()
    model.graph.node[-1].attribute[0].i = TensorProto.INT64
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    refused(model, tmp_path, r"logits is a tensor\(int64\)")
