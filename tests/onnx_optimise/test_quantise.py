"""Weights of few bits: within the bound of their blocks, everything else as it was, and running."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx_ir
import pytest

from alignez_bake.errors import BadInputError
from alignez_bake.onnx_export.graph import export_graph
from alignez_bake.onnx_optimise.quantisation_errors import dequantised, quantisation_errors
from alignez_bake.onnx_optimise.quantise import block_quantised, quantise_graph
from alignez_bake.onnx_optimise.weights import weights_of
from alignez_bake.runtime import generate, open_session
from tests.onnx_export.graphs import Graph, operators, prompts
from tests.onnx_export.making import MAKE
from tests.running import relative
from tests.tiny_models import save_tiny

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from alignez_bake.onnx_export.names import GraphNames

# Wide enough for matrices that are quantised.
SIZES = {
    "llama": {"hidden_size": 128, "intermediate_size": 160, "num_attention_heads": 4, "num_key_value_heads": 4}
    | {"head_dim": 32},
    "gpt2": {"n_embd": 128, "n_inner": 160, "n_head": 4},
}
PRODUCT_ERROR = 5e-3
"""Of x rounded to 8 bits, one product."""
both_bits = pytest.mark.parametrize("bits", [4, 8])


class Wide(NamedTuple):
    """A graph in float32, and its quantised ones by bits."""

    plain: Path
    names: GraphNames
    quantised: dict[int, Path]
    results: dict


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Callable[[str], Wide]:
    """`wide(model_type)`: llama with inserted edits, gpt2 with none."""
    made: dict[str, Wide] = {}

    def make(model_type: str) -> Wide:
        if model_type not in made:
            folder = tmp_path_factory.mktemp(model_type)
            base = save_tiny(model_type, folder / "base", overrides=SIZES[model_type])
            model = MAKE["inserted" if model_type == "llama" else "base"](base, folder)
            plain = folder / "plain.onnx"
            names = export_graph(model, plain)
            targets = {bits: folder / f"q{bits}.onnx" for bits in (4, 8)}
            results = {bits: quantise_graph(plain, target, bits=bits) for bits, target in targets.items()}
            made[model_type] = Wide(plain, names, targets, results)
        return made[model_type]

    return make


@both_bits
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_every_value_is_within_the_bound_of_its_block(model_type, bits, wide):
    graphs = wide(model_type)
    errors = quantisation_errors(graphs.plain, graphs.quantised[bits])
    assert errors.reasons == ()
    assert len(errors.tensors) == len(graphs.results[bits].bits)
    assert 0.9 < max(tensor.of_bound for tensor in errors.tensors) <= 1  # so a smaller bound would not do
    assert errors.worst.bits == bits
    assert errors.worst.relative < (0.15 if bits == 4 else 0.01)
    assert errors.untouched > 0


@both_bits
def test_the_head_has_8_bits_and_the_maps_what_was_asked_for(bits, wide):
    result = wide("llama").results[bits]
    assert sorted(result.bits.values()) == sorted([bits] * 14 + [8])
    assert result.bytes_after < result.bytes_before * (0.5 if bits == 4 else 0.6)  # the embedding stays
    assert operators(wide("llama").quantised[bits])["MatMulNBits"] == 15


def test_inserted_edits_stay_in_full_precision(wide):
    graphs = wide("llama")
    graph = onnx_ir.load(graphs.quantised[4]).graph
    weights = [weight for weight in weights_of(graph) if weight.of_an_edit]
    assert [weight.name for weight in weights] == list(graphs.results[4].kept)
    assert len(weights) == 4
    source = {weight.name: weight.values() for weight in weights_of(onnx_ir.load(graphs.plain).graph)}
    assert all(np.array_equal(weight.values(), source[weight.name]) for weight in weights)


@both_bits
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_the_graph_computes_with_the_weights_that_were_proved(model_type, bits, wide, tmp_path):
    """Against float32 with the dequantised weights, so that nothing but the rounding of x is left."""
    graphs = wide(model_type)
    reference = tmp_path / "reference.onnx"
    _with_dequantised_weights(graphs.plain, graphs.results[bits].bits, reference)
    batch = prompts(4)
    runs = [Graph(path, graphs.names) for path in (graphs.quantised[bits], reference, graphs.plain)]
    found, expected, plain = (graph.step(batch, graph.empty_cache(4))[0] for graph in runs)
    real = batch.attention_mask.bool()
    products = len(graphs.results[bits].bits)
    assert relative(found[real], expected[real]) <= products * PRODUCT_ERROR
    if bits == 4:
        assert relative(plain[real], expected[real]) > 2 * relative(found[real], expected[real])


def test_it_generates_in_our_runner(wide):
    model = open_session(wide("llama").quantised[4], ["cpu"])
    answers = generate(model, [[5, 6, 7], [9]], max_new_tokens=8)
    assert [len(answer) for answer in answers] == [8, 8]


def test_a_wrong_value_is_found_and_named(wide):
    graphs = wide("llama")
    name = next(iter(graphs.results[4].bits))
    damaged = _changed(graphs.quantised[4], f"{name}_Q4", "damaged.onnx", lambda array: array ^ 8)
    errors = quantisation_errors(graphs.plain, damaged)
    assert not errors.worst.is_within
    assert errors.worst.name == name
    (reason,) = errors.reasons
    assert reason.startswith(f"{name}: a value is ")
    assert reason.endswith("as 4 bits allow")


def test_a_changed_norm_is_found_and_named(wide):
    graphs = wide("llama")
    name = "model.model.norm.weight"
    damaged = _changed(graphs.quantised[8], name, "scaled.onnx", lambda array: array * np.float32(1.001))
    assert quantisation_errors(graphs.plain, damaged).reasons == (f"{name}: not the source's values",)


@both_bits
def test_blocks_of_one_sign_zeros_and_a_rest_are_within_the_bound_too(bits):
    W = np.random.default_rng(0).normal(size=(100, 8)).astype(np.float32)
    W[:, 0] = np.abs(W[:, 0]) + 3
    W[:, 1] = -np.abs(W[:, 1]) - 3
    W[:, 2] = 0
    packed, scales, zero_points = block_quantised(W, bits)
    error = np.abs(dequantised(packed, scales, zero_points, bits)[:, :100] - W.T)
    assert (error <= np.repeat(scales, 32, axis=1)[:, :100] * 0.5001).all()
    assert not error[2].any()


def test_other_bits_are_refused(wide, tmp_path):
    with pytest.raises(BadInputError, match="weights of 3 bits cannot be written: choose one of 4, 8"):
        quantise_graph(wide("llama").plain, tmp_path / "q.onnx", bits=3)


def test_a_graph_of_narrow_matrices_is_refused(optimised, tmp_path):
    with pytest.raises(BadInputError, match="no matrix to quantise"):
        quantise_graph(optimised("gpt2", "base", 23).plain.path, tmp_path / "q.onnx", bits=4)
    assert not list(tmp_path.iterdir())


def test_weights_that_are_not_finite_are_refused(wide, tmp_path):
    graphs = wide("llama")
    name = next(iter(graphs.results[4].bits))

    def spoil(array):
        array = array.copy()
        array[0, 0] = np.nan
        return array

    source = _changed(graphs.plain, name, "nan.onnx", spoil)
    with pytest.raises(BadInputError, match=f"{name}: the weights are not finite"):
        quantise_graph(source, tmp_path / "q.onnx", bits=4)


def test_logging_of_the_process_stays(wide):
    wide("llama")
    assert logging.getLogger().level == logging.WARNING


def _changed(source, name, file, change):
    """A copy of a graph with other values in one initialiser, beside the graph, whose other data it shares."""
    target = source.with_name(file)
    model = onnx_ir.load(source)
    value = model.graph.initializers[name]
    value.const_value = onnx_ir.tensor(change(value.const_value.numpy()), name=name)
    onnx_ir.save(model, target)
    return target


def _with_dequantised_weights(source, bits, target):
    from alignez_bake.onnx_optimise.quantisation_errors import dequantised

    model = onnx_ir.load(source)
    for weight in list(weights_of(model.graph)):
        if weight.name in bits:
            parts = block_quantised(weight.values(), bits[weight.name])
            values = dequantised(*parts, bits[weight.name])[:, : weight.shape[0]].T.astype(np.float32)
            tensor = onnx_ir.tensor(np.ascontiguousarray(values), name=f"{weight.name}_dequantised")
            made = onnx_ir.Value(
                name=tensor.name, const_value=tensor, shape=tensor.shape, type=onnx_ir.TensorType(tensor.dtype)
            )
            model.graph.register_initializer(made)
            assert not weight.transposed or weight.node.op_type == "MatMul"
            weight.node.replace_input_with(1, made)
    onnx_ir.save(model, target)
