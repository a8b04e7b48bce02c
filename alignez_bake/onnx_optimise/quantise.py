"""Weights of 4 or 8 bits, by ONNX Runtime's own quantiser.

A matrix W [K, N] is cut into blocks of 32 along K. Each block has a scale s and a zero point z, and its values become
integers q of 0 to 2ᵇ - 1, read back as (q - z) s: the operator MatMulNBits does that while it multiplies.

Only weights are stored so. Inside the operator x is rounded to 8 bits too, block by block, for the time of one product:
on a CPU that is several times as fast as float32 with weights of 4 bits, and hundreds of times with 8, for which
Runtime has no other fast kernel. It errs by half a percent: as much as weights of 8 bits, a twentieth of those of 4.

What stays in full precision: embeddings (they are looked up, not multiplied), experts (a batch of matrices, for which
the operator has no form), the matrices of inserted edits, and any with a side of at most 64: an edit that was put into
the graph without a name of ours has such a side, and there is little to save.

The head has 8 bits even where 4 are asked for: its error goes straight into the logits, where that of the other maps
is one of many terms of a sum that is normed afterwards.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from alignez_bake.errors import BadInputError
from alignez_bake.onnx_export.saving import check_target, data_file
from alignez_bake.onnx_optimise.weights import weights_of
from alignez_bake.runtime.external_data import check_external_data
from alignez_bake.runtime.graph_file import read_graph_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import onnx_ir
    from numpy.typing import NDArray

    from alignez_bake.onnx_optimise.weights import Weight

BITS: Final = (4, 8)
BLOCK: Final = 32
"""Values that share a scale. The smallest block that keeps the scales below an eighth of the weights at 4 bits."""
HEAD_BITS: Final = 8
ACTIVATIONS_OF_8_BITS: Final = 4
"""`accuracy_level` of MatMulNBits: how x is rounded inside a product."""
NARROW: Final = 64
"""The largest rank of an edit: matrices with a side of at most this stay."""
_DTYPES: Final = ("FLOAT", "FLOAT16")


@dataclass(frozen=True)
class Quantised:
    """What became of a graph.

    Attributes:
        bits: of each quantised matrix, by the name of its value in the source.
        kept: names of the constant matrices that stay in full precision.
        bytes_before: of all weights.
        bytes_after: likewise, scales and zero points within.
    """

    bits: Mapping[str, int]
    kept: tuple[str, ...]
    bytes_before: int
    bytes_after: int


def quantise_graph(source: Path, target: Path, *, bits: int) -> Quantised:
    """Write a graph again with weights of few bits, after everything else was done to it.

    One matrix is in memory at a time, and the quantised ones, which are a quarter of the whole or less.

    Args:
        source: a graph, plain or optimised, float32 or float16.
        target: the file to write, `*.onnx`; its weights lie in `<target>_data`.
        bits: 4 or 8.

    Returns:
        Which matrices were quantised.

    Raises:
        BadInputError: other bits, a target that exists, packages that are missing, a file that is no graph or whose
            data are missing or lie elsewhere, weights that are not finite, or a graph without a matrix to quantise.
    """
    if bits not in BITS:
        raise BadInputError(f"weights of {bits} bits cannot be written: choose one of {', '.join(map(str, BITS))}")
    check_target(target)
    check_external_data(read_graph_file(source))
    import onnx_ir  # noqa: PLC0415 - comes with an extra
    import onnx_ir.passes.common as passes  # noqa: PLC0415

    model = onnx_ir.load(source)
    graph = model.graph
    before = _bytes(graph)
    vocabulary = _vocabulary(graph)
    made: dict[tuple[str, bool], list[onnx_ir.Value]] = {}
    chosen, kept = {}, []
    for weight in list(weights_of(graph)):
        if not _is_quantised(weight):
            kept.append(weight.name)
            continue
        chosen[weight.name] = HEAD_BITS if weight.shape[1] == vocabulary else bits
        key = (weight.name, weight.transposed)
        if key not in made:
            made[key] = _stored(graph, weight, chosen[weight.name])
        _replace(graph, weight, made[key], chosen[weight.name])
    if not chosen:
        raise BadInputError(
            f"{source}: no matrix to quantise: only those of {' and '.join(_DTYPES).lower()} are whose sides are both "
            f"above {NARROW} and that no inserted edit owns"
        )
    passes.RemoveUnusedNodesPass()(model)
    graph.opset_imports["com.microsoft"] = 1
    onnx_ir.save(model, target, external_data=data_file(target).name)
    return Quantised(chosen, tuple(kept), before, _bytes(graph))


def block_quantised(values: NDArray[Any], bits: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """ONNX Runtime's quantiser for one matrix [K, N].

    Returns:
        Integers, packed, uint8 [N, K / block, block · bits / 8]; scales [N, K / block] in the matrix's dtype; zero
        points, packed, uint8 [N, (K / block) · bits / 8]; K / block is rounded up, and so is the last width.
    """
    import numpy as np  # noqa: PLC0415

    with _logging_as_it_was():
        from onnxruntime.quantization.matmul_nbits_quantizer import (  # noqa: PLC0415
            DefaultWeightOnlyQuantConfig,
            DefaultWeightOnlyQuantizer,
        )
    settings = DefaultWeightOnlyQuantConfig(block_size=BLOCK, is_symmetric=False, bits=bits)
    packed, scales, zero_points = DefaultWeightOnlyQuantizer(settings).qbits_block_quant(np.ascontiguousarray(values))
    return packed, scales, zero_points


@contextmanager
def _logging_as_it_was() -> Iterator[None]:
    """The quantiser's module sets the level of the whole process, and a handler, when it is imported."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    try:
        yield
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers


def _is_quantised(weight: Weight) -> bool:
    return weight.stored.dtype.name in _DTYPES and min(weight.shape) > NARROW and not weight.of_an_edit


def _stored(graph: onnx_ir.Graph, weight: Weight, bits: int) -> list[onnx_ir.Value]:
    """The quantised matrix as initialisers, with the names that ONNX Runtime's quantiser gives them."""
    import numpy as np  # noqa: PLC0415
    import onnx_ir  # noqa: PLC0415 - comes with an extra

    values = weight.values()
    if not np.isfinite(values).all():
        raise BadInputError(f"{weight.name}: the weights are not finite: nothing can be made of them")
    made = []
    suffixes = (f"_Q{bits}", "_scales", "_zero_points")
    for suffix, array in zip(suffixes, block_quantised(values, bits), strict=True):
        tensor = onnx_ir.tensor(array, name=f"{weight.name}{suffix}")
        kind = onnx_ir.TensorType(tensor.dtype)
        made.append(onnx_ir.Value(name=tensor.name, const_value=tensor, shape=tensor.shape, type=kind))
        graph.register_initializer(made[-1])
    return made


def _replace(graph: onnx_ir.Graph, weight: Weight, stored: list[onnx_ir.Value], bits: int) -> None:
    import onnx_ir  # noqa: PLC0415 - comes with an extra

    old = weight.node
    size_in, size_out = weight.shape
    attributes = {
        "K": size_in,
        "N": size_out,
        "bits": bits,
        "block_size": BLOCK,
        "accuracy_level": ACTIVATIONS_OF_8_BITS,
    }
    product = onnx_ir.node("MatMulNBits", [old.inputs[0], *stored], attributes, domain="com.microsoft")
    nodes = [product]
    if len(old.inputs) > 2 and old.inputs[2] is not None:
        product.outputs[0].name = f"{old.outputs[0].name}_without_bias"
        nodes.append(onnx_ir.node("Add", [product.outputs[0], old.inputs[2]]))
    before, after = old.outputs[0], nodes[-1].outputs[0]
    after.shape, after.type, after.name = before.shape, before.type, before.name
    product.outputs[0].type = before.type
    before.name = f"{before.name}_replaced"
    for node in nodes:
        node.name = f"{old.name}_{node.op_type}"
        node.metadata_props.update(old.metadata_props)
    graph.insert_after(old, nodes)
    onnx_ir.convenience.replace_all_uses_with(before, after, replace_graph_outputs=True)


def _vocabulary(graph: onnx_ir.Graph) -> int | None:
    logits = next((value for value in graph.outputs if value.name == "logits"), None)
    size = None if logits is None or logits.shape is None else logits.shape[-1]
    return size if isinstance(size, int) else None


def _bytes(graph: onnx_ir.Graph) -> int:
    return sum(value.const_value.nbytes for value in graph.initializers.values() if value.const_value is not None)
