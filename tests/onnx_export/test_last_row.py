"""Edits at `last` in a traced graph: how many nodes they are, and that they are the model's."""

from __future__ import annotations

from collections import Counter
from functools import cache

import numpy as np
import onnx_ir as ir
import pytest
import torch

from alignez_bake.model_folder import open_model_folder
from alignez_bake.onnx_export.graph import export_graph
from alignez_bake.onnx_export.last_row import one_hot_last_row
from tests.inserted.saving import edit_at, load_inserted, plan_of, save_inserted
from tests.onnx_export.graphs import TOLERANCE, Graph, Torch, next_batch, operators, prompts
from tests.running import relative
from tests.tiny_models import MODEL_TYPES, VOCABULARY

MOVED = 100
ONE, BOTH = ("attn_write",), ("attn_write", "mlp_write")
FLATTENED = ("mlp_write",)
"""Where OPT's batch and positions are one axis."""
SWEPT = [pytest.param(model_type, marks=pytest.mark.sweep) for model_type in MODEL_TYPES if model_type != "llama"]


# One layer is traced in less time than two; other architectures say how many they have in ways of their own.
ONE_LAYER = {"llama": {"num_hidden_layers": 1}, "opt": {"num_hidden_layers": 1}}


@pytest.fixture(scope="module")
def edited(save_tiny, tmp_path_factory):
    """`edited(model_type, sites, positions, dtype=float32)`: a model with edits at sites of its last layer."""

    @cache
    def make(model_type, sites, positions, dtype=torch.float32):
        folder = tmp_path_factory.mktemp(model_type)
        base = open_model_folder(save_tiny(model_type, folder / "base", overrides=ONE_LAYER.get(model_type)))
        last = base.num_layers - 1
        plan = plan_of(*(edit_at(base, site, last, gate="tanh", positions=positions, scale=2.0) for site in sites))
        return load_inserted(save_inserted(base.path, plan, folder / "inserted"), dtype=dtype)

    return make


@pytest.fixture(scope="module")
def made(edited, tmp_path_factory):
    """`made(model_type, sites, positions, dtype=float32, opset=23)`: the edited model, its graph, its names."""

    @cache
    def make(model_type, sites, positions, *, dtype=torch.float32, opset=23):
        model, path = edited(model_type, sites, positions, dtype), tmp_path_factory.mktemp(model_type) / "model.onnx"
        return model, path, export_graph(model, path, opset=opset)

    return make


def added(made, model_type, sites, **settings):
    """Nodes of edits at `last` more than of the same edits at all positions."""
    more = operators(made(model_type, sites, "last", **settings)[1])
    more.subtract(operators(made(model_type, sites, "all", **settings)[1]))
    return Counter({operator: count for operator, count in more.items() if count})


@pytest.mark.parametrize("opset", [pytest.param(20, marks=pytest.mark.sweep), 23])
def test_one_node_for_all_sites_and_a_product_each(made, opset):
    assert added(made, "llama", ONE, opset=opset) == {"OneHot": 1, "Mul": 1}
    assert added(made, "llama", BOTH, opset=opset) == {"OneHot": 1, "Mul": 2}


@pytest.mark.parametrize("model_type", SWEPT)
def test_three_nodes_at_most_and_one_at_each_further_site(made, model_type):
    """Whatever else the model needs the length for. OPT's second site is one where rows are flattened."""
    one, both = added(made, model_type, ONE), added(made, model_type, BOTH)
    assert one.total() <= 3
    assert both.total() - one.total() == (4 if model_type == "opt" else 1)


def test_where_rows_are_flattened_two_nodes_repeat_the_mask(made):
    assert added(made, "opt", FLATTENED) == {"ConstantOfShape": 1, "OneHot": 1, "Reshape": 1, "Mul": 1}


def test_in_float64_the_mask_is_cast(made):
    """ONNX Runtime has no OneHot in float64."""
    assert added(made, "llama", ONE, dtype=torch.float64, opset=20) == {"OneHot": 1, "Cast": 1, "Mul": 1}


@pytest.mark.parametrize(("model_type", "opset"), [("llama", 20), ("llama", 23), ("opt", 23)])
def test_logits_are_those_of_torch(made, edited, model_type, opset):
    """Several tokens and one, with an empty and a filled cache, of two rows of different lengths."""
    model, path, names = made(model_type, BOTH, "last", opset=opset)
    everywhere = Torch(edited(model_type, BOTH, "all"))
    found, expected = Graph(path, names), Torch(model)
    for length in (1, 7):
        batch = prompts(2) if length > 1 else type(prompts(2))(*(tensor[:, -1:] for tensor in prompts(1)))
        rows = len(batch.input_ids)
        past, cache, other = found.empty_cache(rows), expected.empty_cache(rows), everywhere.empty_cache(rows)
        for new in (1, 3, 1):
            logits, past = found.step(batch, past)
            reference, cache = expected.step(batch, cache)
            unmasked, other = everywhere.step(batch, other)
            real = batch.attention_mask[:, -logits.shape[1] :].bool()
            assert relative(logits[real], reference[real]) <= TOLERANCE
            if logits.shape[1] > 1:
                assert relative(logits[real], unmasked[real]) >= MOVED * TOLERANCE
            generator = torch.Generator().manual_seed(new)
            batch = next_batch(batch, torch.randint(3, VOCABULARY, (rows, new), generator=generator))


class Model(torch.nn.Module):
    """What a model is for the pass: its edits."""

    def __init__(self, *positions: str) -> None:
        super().__init__()
        self.alignez_edits = torch.nn.ModuleDict()
        for number, where in enumerate(positions):
            self.alignez_edits[str(number)] = torch.nn.Module()
            self.alignez_edits[str(number)].positions = where


def traced(*, minus: int = 1, start: int = 0, reader: str = "Mul") -> ir.Graph:
    """As torch traces a mask, over T the length of `ids` [B, T]; with other numbers it is a mask of other rows."""
    ids = ir.Value(name="ids", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["B", "T"]))
    y = ir.Value(name="y", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["B", "T", 2]))
    numbers = {"minus": minus, "start": start, "step": 1, "axes": [-1]}
    given = {
        name: ir.Value(name=name, const_value=ir.tensor(np.array(value, np.int64), name=name))
        for name, value in numbers.items()
    }
    shape = ir.node("Shape", [ids], attributes={"start": 1, "end": 2}, name="shape")
    length = ir.node("Squeeze", shape.outputs, name="length")
    numbered = ir.node("Range", [given["start"], length.outputs[0], given["step"]], name="numbers")
    last = ir.node("Sub", [length.outputs[0], given["minus"]], name="last")
    equal = ir.node("Equal", [numbered.outputs[0], last.outputs[0]], name="equal")
    column = ir.node("Unsqueeze", [equal.outputs[0], given["axes"]], name="column")
    cast = ir.node("Cast", column.outputs, attributes={"to": 1}, name="cast")
    read = ir.node(reader, [y, cast.outputs[0]], name="read")
    nodes = [shape, length, numbered, last, equal, column, cast, read]
    for node in nodes:
        node.outputs[0].name = f"{node.name}_value"
    return ir.Graph(
        [ids, y], read.outputs, nodes=nodes, initializers=list(given.values()), opset_imports={"": 20}, name="graph"
    )


def names(graph: ir.Graph) -> list[str]:
    return [node.op_type for node in graph]


def test_what_only_the_old_mask_read_goes():
    graph = traced()
    one_hot_last_row(graph, Model("last"))
    assert names(graph) == ["Shape", "OneHot", "Mul"]
    assert set(graph.initializers) == {"alignez.last_row.off_on", "alignez.last_row.last"}


def test_a_model_without_edits_at_last_is_left_as_it_is():
    graph = traced()
    before = names(graph)
    one_hot_last_row(graph, Model("all"))
    assert names(graph) == before


@pytest.mark.parametrize("other", [{"minus": 2}, {"start": 1}, {"reader": "Add"}])
def test_what_is_no_such_mask_stays_and_is_said(other):
    graph = traced(**other)
    before = names(graph)
    with pytest.warns(RuntimeWarning, match="1 of 1 edits at the last position have more nodes than they need"):
        one_hot_last_row(graph, Model("last", "all"))
    assert names(graph) == before


def test_one_mask_too_few_is_said():
    with pytest.warns(RuntimeWarning, match="1 of 2 edits"):
        one_hot_last_row(traced(), Model("last", "last"))
