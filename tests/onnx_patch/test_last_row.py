"""The mask of the last row, alone in a graph that ONNX Runtime runs."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest

from alignez_bake.onnx_patch.changes import GraphChanges
from alignez_bake.onnx_patch.edits_data import EditsData
from alignez_bake.onnx_patch.last_row import last_row_mask

FLOAT, HALF, DOUBLE, BFLOAT = (
    onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16,
)  # fmt: skip
COLUMN, FLAT = {"Shape": 1, "OneHot": 1}, {"Shape": 1, "ConstantOfShape": 1, "Pad": 1, "Reshape": 1}


class Tensors(dict):
    """No initialisers."""

    def __init__(self, opset) -> None:
        super().__init__()
        self.opset = opset


@pytest.fixture
def changes():
    """`changes(opset)`: of a graph with nothing in it."""

    def made(opset):
        return GraphChanges(SimpleNamespace(tensors=Tensors(opset), producers={}, uses={}), EditsData(None))

    return made


def masked(changes, name, data_type, opset, ids):
    """The mask, as float32: ONNX Runtime's arrays know no bfloat16."""
    initialisers = [
        onnx.numpy_helper.from_array(stored.values.reshape(stored.shape), key) for key, stored in changes.values.items()
    ]
    nodes = [*changes.first, onnx.helper.make_node("Cast", [name], ["mask"], to=FLOAT)]
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "mask",
        [value("input_ids", onnx.TensorProto.INT64, ["B", "T"])],
        [value("mask", FLOAT, ["rows", 1])],
        initialisers,
        value_info=[value(name, data_type, ["rows", 1])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"input_ids": ids})[0]


@pytest.mark.parametrize("opset", [14, 15, 18, 20, 23])
@pytest.mark.parametrize("data_type", [None, FLOAT, HALF, DOUBLE, BFLOAT])
@pytest.mark.parametrize("flat", [False, True])
def test_one_at_the_last_row_in_every_dtype_and_opset(changes, flat, data_type, opset):
    found = changes(opset)
    name = last_row_mask(found, flat=flat, data_type=data_type)
    for batch, length in ((1, 1), (2, 1), (1, 5), (2, 3)):
        mask = masked(found, name, data_type or FLOAT, opset, np.full((batch, length), 7))
        row = np.eye(length, dtype=np.float32)[-1]
        np.testing.assert_array_equal(mask, np.tile(row, batch if flat else 1)[:, None])
    nodes = Counter(node.op_type for node in found.first)
    nodes -= Counter(Cast=data_type in (DOUBLE, BFLOAT), Gather=opset == 14 and not flat)
    assert nodes == (FLAT if flat else COLUMN)


def test_a_mask_is_made_once(changes):
    found = changes(18)
    names = [last_row_mask(found, flat=flat, data_type=HALF) for flat in (False, True, False, True)]
    assert names[:2] == names[2:]
    assert Counter(node.op_type for node in found.first) == Counter(COLUMN) + Counter(FLAT)
