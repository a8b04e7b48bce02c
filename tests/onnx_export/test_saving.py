"""Files of a graph, and what is refused before the long work."""

from __future__ import annotations

import re

import onnx
import pytest

from alignez_bake.errors import BadInputError
from alignez_bake.onnx_export import cached_forward, graph, saving
from alignez_bake.onnx_export.graph import export_graph
from tests.onnx_export.graphs import Graph, prompts


@pytest.fixture
def model(tiny_model):
    return tiny_model("llama", bias=False)


@pytest.fixture
def no_tracing(monkeypatch):
    """A refusal comes before the long work."""

    def trace(*_arguments):
        raise AssertionError("this should have been refused before")

    monkeypatch.setattr(graph, "_traced", trace)


def rewritten(path, target, *, external_data):
    """The graph of one file saved again, which takes no export."""
    import onnx_ir

    saving.save_graph(onnx_ir.load(path), target, external_data=external_data)


def test_external_data_lie_in_one_file_beside_the_graph(exported, tmp_path):
    inline = exported("llama", "folded").graph
    target = tmp_path / "model.onnx"
    rewritten(inline.path, target, external_data=True)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "model.onnx_data"]
    assert target.stat().st_size < inline.path.stat().st_size / 2
    places = {
        entry.value
        for tensor in onnx.load(target, load_external_data=False).graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    assert places == {"model.onnx_data"}
    batch = prompts(4)
    found, _ = Graph(target, inline.names).step(batch, inline.empty_cache(4))
    assert found.equal(inline.step(batch, inline.empty_cache(4))[0])


def test_where_weights_lie_follows_their_size(model, monkeypatch):
    assert not saving.needs_external_data(model, wanted=None)
    assert saving.needs_external_data(model, wanted=True)
    size = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    monkeypatch.setattr(saving, "LARGEST_FILE", size)
    assert not saving.needs_external_data(model, wanted=None)
    monkeypatch.setattr(saving, "LARGEST_FILE", size - 1)
    assert saving.needs_external_data(model, wanted=None)
    with pytest.raises(BadInputError, match=rf"{size} bytes do not fit .* holds {size - 1}: allow external data"):
        saving.needs_external_data(model, wanted=False)


@pytest.mark.parametrize("opset", [19, 24])
def test_an_opset_out_of_bounds(opset, model, tmp_path, no_tracing):
    with pytest.raises(BadInputError, match=f"opset {opset} cannot be written: choose one of 20 to 23"):
        export_graph(model, tmp_path / "model.onnx", opset=opset)


def test_targets_that_cannot_be(model, tmp_path, no_tracing):
    with pytest.raises(BadInputError, match=r"must end in \.onnx"):
        export_graph(model, tmp_path / "model.bin")
    with pytest.raises(BadInputError, match="no such folder"):
        export_graph(model, tmp_path / "none" / "model.onnx")
    for name in ("model.onnx_data", "model.onnx"):
        (tmp_path / name).touch()
        with pytest.raises(BadInputError, match=rf"{re.escape(name)} exists"):
            export_graph(model, tmp_path / "model.onnx")


def test_a_model_in_training_mode(model, tmp_path, no_tracing):
    with pytest.raises(ValueError, match=r"call eval\(\) first"):
        export_graph(model.train(), tmp_path / "model.onnx")


def test_missing_packages(model, tmp_path, monkeypatch, no_tracing):
    monkeypatch.setattr(saving, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(BadInputError, match=re.escape("(onnxscript): pip install 'alignez-bake[onnx]'")):
        export_graph(model, tmp_path / "model.onnx")


def test_a_model_without_positions(model, tmp_path, monkeypatch, no_tracing):
    monkeypatch.setattr(model, "forward", lambda input_ids, attention_mask, cache: None)
    with pytest.raises(BadInputError, match="LlamaForCausalLM takes no position_ids"):
        export_graph(model, tmp_path / "model.onnx")


def test_a_cache_of_something_else(model, monkeypatch):
    forward = cached_forward.CachedForward(model)
    monkeypatch.setattr(forward, "forward", lambda ids, *_: (None, [(ids, ids)]))
    with pytest.raises(BadInputError, match="layer 0 of LlamaForCausalLM keeps no keys and values"):
        cached_forward.cache_shapes(forward)
