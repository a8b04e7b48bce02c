"""Data beside a graph: nothing out of the folder is opened, nothing short is believed."""

from __future__ import annotations

import shutil

import pytest

from alignez_bake.errors import BadInputError
from alignez_bake.runtime import generate, open_session
from alignez_bake.runtime.external_data import check_external_data
from alignez_bake.runtime.graph_file import read_graph_file
from tests.runtime.graphs import causal_model, external, reference_greedy, rewritten_entry

CONTEXT = [1, 5, 9, 3]


@pytest.fixture
def graph(tmp_path):
    """A graph with its data, in a folder of its own."""
    folder = tmp_path / "model"
    folder.mkdir()
    return external(causal_model(), folder)


def check(path):
    check_external_data(read_graph_file(path))


def test_data_in_the_folder_are_taken(graph):
    model = open_session(graph, ["cpu"])
    assert generate(model, [CONTEXT], max_new_tokens=8) == [reference_greedy(CONTEXT, 8)]


def test_data_in_a_folder_below_are_taken(graph):
    (graph.parent / "onnx").mkdir()
    (graph.parent / "weights.data").rename(graph.parent / "onnx" / "weights.data")
    rewritten_entry(graph, "location", "onnx/weights.data")
    check(graph)


@pytest.mark.parametrize(
    "location",
    ["../weights.data", "a/../../weights.data", "/etc/passwd", "..\\weights.data", "C:\\weights.data", "C:weights.data",
     "\\\\host\\share\\x", "", "weights.data\0", "..", "onnx/../weights.data"],
)  # fmt: skip
def test_a_place_out_of_the_folder_is_refused_though_it_is_there(graph, location):
    shutil.copy(graph.parent / "weights.data", graph.parent.parent / "weights.data")
    rewritten_entry(graph, "location", location)
    with pytest.raises(BadInputError, match="only a file in the model's own folder is opened"):
        open_session(graph, ["cpu"])


def test_a_link_out_of_the_folder_is_refused(graph):
    (graph.parent / "weights.data").rename(graph.parent.parent / "elsewhere")
    (graph.parent / "weights.data").symlink_to(graph.parent.parent / "elsewhere")
    with pytest.raises(BadInputError, match=r"is a link to .*elsewhere, out of the model's folder"):
        open_session(graph, ["cpu"])


def test_links_into_the_folder_of_blobs_are_taken(graph, tmp_path):
    """How the hub's cache lies on the disk: the graph itself is a link into the same folder."""
    snapshot = tmp_path / "snapshots" / "one"
    snapshot.mkdir(parents=True)
    for name in ("model.onnx", "weights.data"):
        (snapshot / name).symlink_to(graph.parent / name)
    check(snapshot / "model.onnx")


def test_a_link_in_a_circle_is_missing(graph):
    (graph.parent / "weights.data").unlink()
    (graph.parent / "weights.data").symlink_to(graph.parent / "weights.data")
    with pytest.raises(BadInputError, match="is missing"):
        check(graph)


def test_missing_data_are_refused(graph):
    (graph.parent / "weights.data").unlink()
    with pytest.raises(BadInputError, match=r"weights\.data is missing: copy it too"):
        open_session(graph, ["cpu"])


def test_a_folder_in_the_place_of_data_is_refused(graph):
    (graph.parent / "weights.data").unlink()
    (graph.parent / "weights.data").mkdir()
    with pytest.raises(BadInputError, match="not a regular file"):
        check(graph)


def test_the_address_of_memory_is_no_place(graph):
    """A marker that ONNX Runtime itself uses: the offset would be an address in this process."""
    rewritten_entry(graph, "location", "*/_ORT_MEM_ADDR_/*")
    with pytest.raises(BadInputError, match="is missing"):
        open_session(graph, ["cpu"])


def test_data_that_end_too_early_are_refused(graph):
    data = graph.parent / "weights.data"
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(BadInputError, match="copy that file again"):
        open_session(graph, ["cpu"])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("length", "1", "its entry says 1"),
        ("length", str(2**62), f"its entry says {2**62}"),
        ("offset", str(2**62), "copy that file again"),
        ("offset", "-1", "is not a number of bytes"),
        ("offset", "1e3", "is not a number of bytes"),
        ("offset", "9" * 5000, "is not a number of bytes"),
        ("length", "٣", "is not a number of bytes"),
    ],
)
def test_sizes_that_cannot_be_are_refused(graph, key, value, message):
    rewritten_entry(graph, key, value)
    with pytest.raises(BadInputError, match=message):
        open_session(graph, ["cpu"])


def test_without_a_length_the_shape_says_it(graph):
    rewritten_entry(graph, "length", None)
    check(graph)
    data = graph.parent / "weights.data"
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(BadInputError, match="copy that file again"):
        check(graph)


def test_an_entry_given_twice_is_refused(graph):
    """Two readers might each take another one."""
    from alignez_bake.runtime.graph_file import ExternalTensor, GraphFile

    entries = (("location", "weights.data"), ("location", "../weights.data"))
    with pytest.raises(BadInputError, match="says twice where its data lie"):
        check_external_data(GraphFile(graph, 17, (), (), frozenset(), (ExternalTensor("w", 1, (1,), entries),)))


@pytest.mark.parametrize(
    ("data_type", "shape", "message"), [(8, (1,), "data type number 8"), (99, (1,), "99"), (1, (2, -2), "below 0")]
)
def test_a_tensor_without_a_size_is_refused(graph, data_type, shape, message):
    from alignez_bake.runtime.graph_file import ExternalTensor, GraphFile

    tensor = ExternalTensor("w", data_type, shape, (("location", "weights.data"),))
    with pytest.raises(BadInputError, match=message):
        check_external_data(GraphFile(graph, 17, (), (), frozenset(), (tensor,)))
