"""Graphs for the certificate: exported from bakes of tiny models, and changed in ways that a user's could be wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx
from alignez_bake.exporters.checkpoint import CheckpointExporter
from onnx import TensorProto, helper, numpy_helper

from alignez_bake.certificate.graph import certify_graph
from alignez_bake.commands.bake import bake
from alignez_bake.language_model.loading import load_model
from alignez_bake.lowering.lower import lower
from alignez_bake.model_folder import open_model_folder
from alignez_bake.onnx_export.graph import export_graph
from alignez_bake.runtime import open_session

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from alignez_bake.certificate.graph import GraphCertificate
    from alignez_bake.edit_plan import EditPlan
    from alignez_bake.language_model.loading import LoadedModel


class Made(NamedTuple):
    """A base, its bake, and the graph made of that."""

    base: Path
    plan: EditPlan
    baked: LoadedModel
    graph: Path


def make(base: Path, plan: EditPlan, folder: Path) -> Made:
    """Bake and export; edits that do not fold are inserted."""
    out = bake(base, plan, folder / "out", trust_remote_code=True).path
    baked = load_model(open_model_folder(out), trust_remote_code=True)
    target = folder / "model.onnx"
    export_graph(baked.model, target)
    return Made(base, plan, baked, target)


def certified(made: Made, **changes) -> GraphCertificate:
    """The certificate with some of what was made replaced, or a `reference`, the path of a graph."""
    reference = changes.pop("reference", None)
    made = made._replace(**changes)
    base = open_model_folder(made.base)
    return certify_graph(
        base,
        lower(made.plan, base, CheckpointExporter(), code=True),
        open_session(made.graph, ["cpu"]),
        made.baked,
        reference=None if reference is None else open_session(reference, ["cpu"]),
    )


def changed(graph: Path, target: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    """A graph with a change, as another file."""
    model = onnx.load(graph)
    change(model)
    onnx.save(model, target)
    return target


def swap_layers_of_the_cache(model: onnx.ModelProto) -> None:
    """`present.0.key` is that of layer 1, and the other way round: names, order and shapes are as they must be."""
    names = {"present.0.key": "present.1.key", "present.1.key": "present.0.key"}
    for node in model.graph.node:
        for values in (node.input, node.output):
            values[:] = [names.get(name, name) for name in values]


def count_positions_over_padding(model: onnx.ModelProto) -> None:
    """Positions are columns of the batch, whatever the mask says: right where nothing is padded."""
    for node in model.graph.node:
        node.input[:] = ["columns" if name == "position_ids" else name for name in node.input]
    axes = [
        numpy_helper.from_array(np.array([1]), "axis_of_columns"),
        numpy_helper.from_array(np.array([np.iinfo(np.int64).max]), "end_of_columns"),
    ]
    ones = helper.make_tensor("one", TensorProto.INT64, [1], [1])
    nodes = [
        helper.make_node("Shape", ["attention_mask"], ["shape_of_mask"]),
        helper.make_node("ConstantOfShape", ["shape_of_mask"], ["ones"], value=ones),
        helper.make_node("CumSum", ["ones", "axis_of_columns"], ["counted"], exclusive=1),
        helper.make_node("Shape", ["input_ids"], ["new_columns"], start=1, end=2),
        helper.make_node("Neg", ["new_columns"], ["first_column"]),
        helper.make_node(
            "Slice", ["counted", "first_column", "end_of_columns", "axis_of_columns"], ["columns"]
        ),
    ]  # fmt: skip
    model.graph.initializer.extend(axes)
    for index, node in enumerate(nodes):
        model.graph.node.insert(index, node)


def with_noise(size: float) -> Callable[[onnx.ModelProto], None]:
    """Weights as a quantiser leaves them: each is off by about `size` times the largest of its tensor."""

    def change(model: onnx.ModelProto) -> None:
        rng = np.random.default_rng(0)
        for tensor in model.graph.initializer:
            values = numpy_helper.to_array(tensor)
            if values.dtype == np.float32 and values.ndim == 2:
                noisy = values + size * np.abs(values).max() * rng.uniform(-1, 1, size=values.shape)
                tensor.CopyFrom(numpy_helper.from_array(noisy.astype(np.float32), tensor.name))

    return change
