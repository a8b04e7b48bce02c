"""Initialisers as they lie in the files, against what onnx itself reads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from alignez_bake.errors import BadInputError
from alignez_bake.onnx_graph.initialisers import open_graph
from tests.runtime.graphs import causal_model, external, rewritten_entry, saved

FOLDED = "pkg.onnxscript.optimizer.folded_from"
DTYPES = [
    *("float32", "float16", "float64", "int64", "int32", "uint8", "bool"),
    *(ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn),
]


def graph_of(*tensors, values=()):
    """A model with these initialisers, of which one is what it puts out."""
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    node = helper.make_node("Identity", [tensors[0].name], ["y"])
    graph = helper.make_graph([node], "g", [], [output], list(tensors), value_info=list(values))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def folded(name, origins):
    """What the optimiser notes of a value that it made."""
    info = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
    info.metadata_props.add(key=FOLDED, value=origins)
    return info


@pytest.mark.parametrize("save", [saved, external])
def test_values_are_those_that_onnx_reads(tmp_path, save):
    path = save(causal_model(), tmp_path)
    graph, expected = open_graph(path), onnx.load(path).graph.initializer
    assert list(graph.names) == list(graph) == [tensor.name for tensor in expected]
    assert len(graph) == len(expected) > 0
    assert any(graph.entry(name).file is not None for name in graph) == (save is external)
    for tensor in expected:
        values, entry = numpy_helper.to_array(tensor), graph.entry(tensor.name)
        read = graph.read(tensor.name)
        assert (entry.shape, entry.dtype, entry.data_type) == (values.shape, values.dtype, tensor.data_type)
        assert (read.shape, read.dtype, read.tobytes()) == (values.shape, values.dtype, values.tobytes())
        assert bytes(graph.read_bytes(tensor.name)) == values.tobytes()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0, 4), (3, 4)])
def test_every_dtype_and_shape(tmp_path, dtype, shape):
    values = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    graph = open_graph(saved(graph_of(numpy_helper.from_array(values, "w")), tmp_path))
    assert graph.read("w").dtype == values.dtype
    assert graph.read("w").shape == shape
    assert graph.read("w").tobytes() == values.tobytes()


def test_values_are_read_only_views_of_the_file(tmp_path):
    path = external(causal_model(), tmp_path)
    graph = open_graph(path)
    values, entry = graph.read("K0"), graph.entry("K0")
    assert not values.flags.owndata
    assert not values.flags.writeable
    data = entry.file.read_bytes()
    assert data[entry.offset : entry.offset + values.nbytes] == values.tobytes()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="how much is mapped is read from /proc")
@pytest.mark.parametrize("save", [saved, external])
def test_pages_can_be_let_go_of_while_arrays_stay(tmp_path, save):
    values = np.arange(2**23, dtype=np.float32)
    graph = open_graph(save(graph_of(numpy_helper.from_array(values, "w")), tmp_path))
    read = graph.read("w")
    before = mapped_kib()
    assert (read == values).all()
    assert mapped_kib() - before > 2**14
    graph.release()
    assert mapped_kib() - before < 2**12
    assert (read == values).all()


def mapped_kib() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssFile"))


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.INT64])
def test_values_that_are_written_one_by_one(tmp_path, kind):
    tensor = helper.make_tensor("w", kind, [2, 2], [1, 2, -3, 4])
    assert not tensor.raw_data
    values = open_graph(saved(graph_of(tensor), tmp_path)).read("w")
    assert values.dtype == helper.tensor_dtype_to_np_dtype(kind)
    assert values.tolist() == [[1, 2], [-3, 4]]


def test_values_packed_below_one_byte_are_bytes(tmp_path):
    tensor = helper.make_tensor("w", TensorProto.UINT4, [3], b"\x21\x03", raw=True)
    graph = open_graph(saved(graph_of(tensor), tmp_path))
    assert graph.entry("w").dtype is None
    assert bytes(graph.read_bytes("w")) == b"\x21\x03"
    with pytest.raises(BadInputError, match="data type number 21, which no array can hold"):
        graph.read("w")


def test_origins_are_read_wherever_they_are_noted(tmp_path):
    tensors = [numpy_helper.from_array(np.ones(2, np.float32), name) for name in "abc"]
    tensors[1].metadata_props.add(key=FOLDED, value="['m.x']")
    path = saved(graph_of(*tensors, values=[folded("a", "['m.y', \"it's\"]")]), tmp_path)
    graph = open_graph(path)
    assert [graph.entry(name).folded_from for name in "abc"] == [("m.y", "it's"), ("m.x",), ()]


@pytest.mark.parametrize(
    "told", ["x", "['a'", "'a'", "[1]", "__import__('os')", "[" * 5000, "['a'" + " " * 70000 + "]"]
)
def test_origins_that_are_no_names_are_refused(tmp_path, told):
    tensor = numpy_helper.from_array(np.ones(2, np.float32), "a")
    path = saved(graph_of(tensor, values=[folded("a", told)]), tmp_path)
    with pytest.raises(BadInputError, match=r"initialiser 'a': pkg\.onnx.*folded_from is .* no list of"):
        open_graph(path)


def test_an_unknown_name_is_refused(tmp_path):
    graph = open_graph(saved(causal_model(), tmp_path))
    assert "K9" not in graph
    assert "K0" in graph
    with pytest.raises(BadInputError, match="has no initialiser 'K9' among its"):
        graph.read("K9")


def test_two_of_one_name_are_refused(tmp_path):
    tensor = numpy_helper.from_array(np.ones(2, np.float32), "a")
    with pytest.raises(BadInputError, match="has two initialisers 'a'"):
        open_graph(saved(graph_of(tensor, tensor), tmp_path))


def test_data_out_of_the_folder_are_not_opened(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    path = external(causal_model(), folder)
    (tmp_path / "weights.data").write_bytes((folder / "weights.data").read_bytes())
    rewritten_entry(path, "location", "../weights.data")
    with pytest.raises(BadInputError, match="only a file in the model's own folder is opened"):
        open_graph(path)


@pytest.mark.parametrize("size", [3, 2**40, -2])
@pytest.mark.parametrize("save", [saved, external])
def test_a_shape_that_its_bytes_do_not_fill_is_refused(tmp_path, save, size):
    path = save(causal_model(), tmp_path)
    model = onnx.load(path, load_external_data=False)
    next(tensor for tensor in model.graph.initializer if tensor.name == "K0").dims[0] = size
    with pytest.raises(BadInputError, match=r"'K0'.* shape \["):
        open_graph(saved(model, tmp_path))


@pytest.mark.parametrize("size", [3, 2**40])
def test_a_shape_with_too_few_values_is_refused(tmp_path, size):
    tensor = helper.make_tensor("w", TensorProto.FLOAT, [2, 2], [1, 2, 3, 4])
    tensor.dims[0] = size
    graph = open_graph(saved(graph_of(tensor), tmp_path))
    with pytest.raises(BadInputError, match="initialiser 'w' is damaged"):
        graph.read("w")


def test_no_torch_and_no_runtime_are_needed(tmp_path):
    path = external(causal_model(), tmp_path)
    code = (
        "import sys, pathlib\nfrom alignez_bake.onnx_graph.initialisers import open_graph\n"
        "from alignez_bake.onnx_graph.operands import right_operands\n"
        f"graph = open_graph(pathlib.Path({str(path)!r}))\ngraph.read('K0'), right_operands(graph)\n"
        "print({'torch', 'transformers', 'onnxruntime', 'onnx'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "set()"), done.stderr
