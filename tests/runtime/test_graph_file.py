"""What is read from a `.onnx` file before ONNX Runtime opens it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from alignez_bake.errors import BadInputError
from alignez_bake.runtime.external_data import BITS
from alignez_bake.runtime.graph_file import CHILDREN, MIN_OPSET, read_graph_file
from tests.runtime.graphs import causal_model, external, saved

PROTOS = {
    "model": onnx.ModelProto, "graph": onnx.GraphProto, "node": onnx.NodeProto, "attribute": onnx.AttributeProto,
    "tensor": onnx.TensorProto, "sparse": onnx.SparseTensorProto, "function": onnx.FunctionProto,
    "training": onnx.TrainingInfoProto,
}  # fmt: skip


def test_the_table_of_messages_is_every_way_to_a_tensor_in_the_schema():
    kinds = {proto.DESCRIPTOR.full_name: kind for kind, proto in PROTOS.items()}
    for kind, proto in PROTOS.items():
        expected = {
            field.number: kinds[field.message_type.full_name]
            for field in proto.DESCRIPTOR.fields
            if field.message_type is not None and field.message_type.full_name in kinds
        }
        assert dict(CHILDREN[kind]) == expected, kind


def test_the_sizes_of_types_are_those_of_onnx():
    for name, number in TensorProto.DataType.items():
        if name in ("UNDEFINED", "STRING"):
            assert number not in BITS
            continue
        tensor = helper.make_tensor("t", number, [8], bytes(BITS[number]), raw=True)  # 8 values of n bits: n bytes
        assert numpy_helper.to_array(tensor).shape == (8,)


def test_every_tensor_with_data_elsewhere_is_found(tmp_path):
    def outside(name):
        tensor = TensorProto(name=name, data_type=1, dims=[2], data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value=f"{name}.bin")
        return tensor

    inner = helper.make_graph([helper.make_node("Constant", [], ["c"], value=outside("deep"))], "inner", [], [])
    inner.initializer.append(outside("inner"))
    model = causal_model()
    model.graph.node.append(helper.make_node("Loop", ["a"], ["b"], body=inner))
    model.graph.initializer.append(outside("plain"))
    sparse = model.graph.sparse_initializer.add(dims=[4])
    sparse.values.CopyFrom(outside("values"))
    sparse.indices.CopyFrom(outside("indices"))
    function = model.functions.add(name="f", domain="d")
    function.node.append(helper.make_node("Constant", [], ["c"], value=outside("in_function")))
    half = model.graph.initializer.add(name="half", data_type=1, dims=[1])  # entries, and no word that they count
    half.external_data.add(key="location", value="half.bin")
    found = read_graph_file(saved(model, tmp_path)).external
    assert {tensor.name for tensor in found} == {"deep", "inner", "plain", "values", "indices", "in_function", "half"}
    by_name = {tensor.name: tensor for tensor in found}
    assert by_name["plain"].entries == (("location", "plain.bin"),)
    assert by_name["plain"].shape == (2,)


def test_a_graph_whose_weights_lie_inside_names_none(tmp_path):
    graph = read_graph_file(saved(causal_model(opset=17), tmp_path))
    assert graph.external == ()
    assert graph.opset == 17


def test_an_exported_graph_names_its_weights(tmp_path):
    found = read_graph_file(external(causal_model(), tmp_path)).external
    assert {tensor.name for tensor in found} == {"K0", "V0", "H0", "K1", "V1", "H1"}


@pytest.mark.parametrize("opset", [1, 12, MIN_OPSET - 1])
def test_an_old_opset_is_refused(tmp_path, opset):
    with pytest.raises(BadInputError, match=f"has opset {opset}, and {MIN_OPSET} is the least"):
        read_graph_file(saved(causal_model(opset=opset), tmp_path))


def test_the_oldest_opset_is_taken(tmp_path):
    assert read_graph_file(saved(causal_model(opset=MIN_OPSET), tmp_path)).opset == MIN_OPSET


def test_an_old_opset_beside_a_new_one_of_another_domain_is_refused(tmp_path):
    model = causal_model(opset=12)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 99))
    with pytest.raises(BadInputError, match="has opset 12"):
        read_graph_file(saved(model, tmp_path))


def test_a_file_cut_anywhere_is_refused_or_whole_to_the_eye(tmp_path):
    """The opset stands at the end of the file, so every cut loses it or ends within a field."""
    whole = causal_model().SerializeToString()
    path = tmp_path / "model.onnx"
    for end in [*range(40), *range(40, len(whole), 37), *range(len(whole) - 20, len(whole))]:
        path.write_bytes(whole[:end])
        with pytest.raises(BadInputError, match=r"cut short|empty|no ONNX model"):
            read_graph_file(path)
    path.write_bytes(whole)
    read_graph_file(path)


def test_bytes_that_are_no_model_are_refused(tmp_path):
    """Noise gives an error of ours, whatever it happens to spell."""
    path = tmp_path / "model.onnx"
    rng = np.random.default_rng(0)
    for _ in range(200):
        path.write_bytes(rng.bytes(int(rng.integers(1, 300))))
        with pytest.raises(BadInputError, match=r"model\.onnx"):
            read_graph_file(path)


def test_changed_bytes_give_an_error_of_ours_or_a_graph(tmp_path):
    whole = bytearray(external(causal_model(), tmp_path).read_bytes())
    path = tmp_path / "changed.onnx"
    rng = np.random.default_rng(1)
    refused = 0
    for _ in range(300):
        changed = bytearray(whole)
        changed[int(rng.integers(len(whole)))] = int(rng.integers(256))
        path.write_bytes(changed)
        try:
            read_graph_file(path)
        except BadInputError:
            refused += 1
    assert refused > 10


def test_graphs_in_graphs_without_end_are_refused(tmp_path):
    """Depth is the hostile file's to choose, and Python's stack is not endless."""
    payload = b""
    for _ in range(400):  # graph -> node (1) -> attribute (5) -> graph (6)
        for number in (6, 5, 1):
            payload = bytes([number << 3 | 2]) + _length(len(payload)) + payload
    model = b"\x3a" + _length(len(payload)) + payload + bytes([8 << 3 | 2, 2, 0x10, 17])
    path = tmp_path / "model.onnx"
    path.write_bytes(model)
    with pytest.raises(BadInputError, match="more than 100 deep"):
        read_graph_file(path)


def _length(size: int) -> bytes:
    out = bytearray()
    while size > 0x7F:
        out.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([*out, size])


def test_a_file_beyond_protobufs_bound_is_refused_unread(tmp_path):
    path = tmp_path / "model.onnx"
    with path.open("wb") as file:
        file.truncate(2**31)
    with pytest.raises(BadInputError, match="export the model with external data"):
        read_graph_file(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "none.onnx", tmp_path):
        with pytest.raises(BadInputError, match="cannot be read"):
            read_graph_file(path)
