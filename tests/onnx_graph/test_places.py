"""Where tensors of a checkpoint must lie in a graph, by name, by number, by shape."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from alignez_bake.onnx_graph.initialisers import open_graph
from alignez_bake.onnx_graph.places import LARGEST_MERGED, Place, TensorPlaces
from tests.onnx_graph.test_initialisers import folded
from tests.runtime.graphs import saved

W = "layers.3.w.weight"
LARGE = (2, LARGEST_MERGED)


@pytest.fixture
def places(tmp_path):
    """`places({initialiser: (shape, names it is folded from)}, {key: shape})`, products' right operands by name."""

    def make(initialisers, shapes, *, operands=(), prefix="model", others=None):
        tensors = [
            numpy_helper.from_array(np.zeros(shape, np.float32), name) for name, (shape, _) in initialisers.items()
        ]
        values = [folded(name, repr(list(origins))) for name, (_, origins) in initialisers.items() if origins]
        x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy")
        nodes = [helper.make_node("MatMul", ["x", name], [f"{name}_out"]) for name in operands]
        nodes.append(helper.make_node("Identity", ["x"], ["y"]))
        graph = helper.make_graph(nodes, "g", [x], [y], tensors, value_info=values)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        return TensorPlaces(open_graph(saved(model, tmp_path)), shapes, prefix, others or {})

    return make


@pytest.mark.parametrize("name", [f"model.model.{W}", f"model.{W}", W])
@pytest.mark.parametrize("key", [W, f"model.{W}"])
def test_a_name_with_or_without_prefix_and_wrapper_is_certain(places, name, key):
    found = places({name: ((2, 3), ())}, {key: (2, 3)})
    assert found.of(key).certain == (Place(name),)
    assert found.of(key).possible == found.of(key).made == ()
    assert found.unclaimed == ()


def test_what_is_folded_from_a_map_is_its_transpose(places):
    found = places({"val_1": ((3, 2), [f"model.{W}"])}, {W: (2, 3)})
    assert found.of(W).certain == (Place("val_1", transposed=True),)


@pytest.mark.parametrize("is_operand", [True, False])
def test_of_a_square_the_product_tells_whether_it_is_transposed(places, is_operand):
    found = places({"val_1": ((2, 2), [f"model.{W}"])}, {W: (2, 2)}, operands=["val_1"] if is_operand else [])
    assert found.of(W).certain == (Place("val_1", transposed=is_operand),)


def test_a_stack_of_squares_lies_as_in_the_file(places):
    found = places({"val_1": ((4, 2, 2), [f"model.{W}"])}, {W: (4, 2, 2)}, operands=["val_1"])
    assert found.of(W).certain == (Place("val_1"),)


def test_a_folded_vector_may_be_reshaped(places):
    found = places({"val_1": ((1, 6, 1), [f"model.{W}"])}, {W: (6,)})
    assert found.of(W).certain == (Place("val_1", reshaped=True),)


def test_every_initialiser_of_a_name_is_certain(places):
    found = places({f"model.{W}": ((2, 3), ()), "val_1": ((3, 2), [f"model.{W}"])}, {W: (2, 3)})
    assert found.of(W).certain == (Place(f"model.{W}"), Place("val_1", transposed=True))


def test_what_is_folded_from_several_is_something_else(places):
    found = places({"add_1": ((3,), [f"model.{W}", "val_16"])}, {W: (3,)}).of(W)
    assert found.certain == ()
    assert found.possible == (Place("add_1"),)
    assert found.made == ("add_1 is folded from it and other values",)


def test_what_is_folded_into_another_size_is_something_else(places):
    found = places({"val_1": ((5,), [f"model.{W}"])}, {W: (3,)}).of(W)
    assert found.certain == found.possible == ()
    assert found.made == ("val_1 of shape [5] is folded from it",)


def test_other_names_are_given(places):
    found = places(
        {"model.lm_head.weight": ((9, 2), ())}, {"e.weight": (9, 2)}, others={"e.weight": ["lm_head.weight"]}
    )
    assert found.of("e.weight").certain == (Place("model.lm_head.weight"),)


def test_experts_are_parts_of_a_stack_of_their_layer(places):
    stacks = {
        "val_1": ((4, 6, 2), ["model.layers.3.mlp.up"]),
        "val_2": ((4, 2, 3), ["model.layers.3.mlp.down"]),
        "val_3": ((4, 6, 2), ["model.layers.2.mlp.up"]),
    }
    key = "layers.3.experts.1.w1.weight"
    found = places(stacks, {key: (3, 2)}).of(key)
    assert found.certain == ()
    assert found.possible == (
        Place("val_1", index=1, start=0),
        Place("val_1", index=1, start=3),
        Place("val_2", index=1, start=0, transposed=True),
    )
    assert [str(place) for place in found.possible] == ["val_1[1, 0:]", "val_1[1, 3:]", "val_2[1, 0:]ᵀ"]


def test_an_expert_beyond_the_stack_has_no_place(places):
    key = "layers.3.experts.4.w1.weight"
    number = "9" * 5000
    stacks = {"val_1": ((4, 3, 2), ["model.layers.3.mlp.up"]), "val_2": ((4, 3, 2), [f"model.layers.{number}.mlp.up"])}
    found = places(stacks, {key: (3, 2)})
    assert found.of(key).possible == ()
    assert found.unclaimed == ("val_1", "val_2")


def test_a_renamed_map_is_one_of_its_layer(places):
    initialisers = {f"model.layers.{layer}.gate.weight": ((2, 3), ()) for layer in (2, 3)}
    assert places(initialisers, {W: (2, 3)}).of(W).possible == (Place("model.layers.3.gate.weight"),)


def test_no_other_tensors_place_is_taken(places):
    initialisers = {"model.layers.3.gate.weight": ((2, 3), ())}
    found = places(initialisers, {W: (2, 3), "layers.3.gate.weight": (2, 3)})
    assert found.of(W).possible == ()


def test_a_large_tensor_without_a_name_is_one_that_has_none_either(places):
    initialisers = {"onnx::MatMul_7": (LARGE[::-1], ()), "model.layers.2.v.weight": (LARGE, ())}
    found = places(initialisers, {W: LARGE})
    assert found.of(W).possible == (Place("onnx::MatMul_7", transposed=True),)
    assert list(found.merged(W)) == []


def test_small_tensors_may_be_merged_into_any_other(places):
    initialisers = {"model.layers.2.b.bias": ((3,), ()), "val_1": ((3,), ()), "val_2": ((4,), ())}
    key = "layers.3.b.bias"
    found = places(initialisers, {key: (3,), "layers.2.b.bias": (3,)})
    assert found.of(key).possible == ()
    assert list(found.merged(key)) == [Place("model.layers.2.b.bias"), Place("val_1")]


def test_values_are_the_part_that_a_place_names(tmp_path):
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    node = helper.make_node("Identity", ["w"], ["y"])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "g", [], [output], [numpy_helper.from_array(values, "w")])
    path = saved(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path)
    opened = open_graph(path)
    assert Place("w").values(opened, (2, 3, 4)).tolist() == values.tolist()
    assert Place("w", transposed=True).values(opened, (2, 4, 3)).tolist() == values.swapaxes(1, 2).tolist()
    assert Place("w", index=1, start=1).values(opened, (2, 4)).tolist() == values[1, 1:].tolist()
    assert Place("w", True, 1, 2).values(opened, (2, 3)).tolist() == values[1].T[2:].tolist()
    assert Place("w", reshaped=True).values(opened, (24,)).tolist() == list(range(24))
    assert Place("w").values(opened, (24,)).shape == (2, 3, 4)
