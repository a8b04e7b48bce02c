"""How far quantised weights are from those they were made of, and the proof that they are no farther than they may be.

With b bits there are n = 2ᵇ - 1 steps. Runtime's quantiser takes, of each block and 0, the least value l and the
largest h; s = (h - l) / n; z = round(-l / s); q = round(w / s + z), held within 0 and n.

The bound is s / 2 for every value, those at the ends included: w / s + z lies between -δ and n + δ, where δ <= 1/2 is
what rounding z moved it by. Within the range, rounding errs by 1/2 at most; what is held at an end, by δ.
The scale itself is rounded to its dtype, s' = s (1 + θ) with |θ| <= ε, which moves (q - z) s by at most n s ε. So

    |(q - z) s' - w|  <=  s' (1/2 + 2 n ε) + n · (least positive value of the dtype)

where the last term stands for scales so small that their dtype has no full precision left for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from alignez_bake.errors import BadInputError
from alignez_bake.onnx_optimise.weights import weights_of

if TYPE_CHECKING:
    from pathlib import Path

    import onnx_ir
    from numpy.typing import NDArray

    from alignez_bake.onnx_optimise.weights import Weight


@dataclass(frozen=True)
class TensorError:
    """One quantised matrix against its source.

    Attributes:
        name: of its value in the source.
        bits: 4 or 8.
        relative: Frobenius norm of the error over that of the source; 0 where both are 0.
        of_bound: largest error of a value over the bound of its block; at most 1 where it was quantised rightly.
    """

    name: str
    bits: int
    relative: float
    of_bound: float

    @property
    def is_within(self) -> bool:
        """Whether every value is within its bound; not where an error is NaN."""
        return self.of_bound <= 1


@dataclass(frozen=True)
class QuantisationErrors:
    """A quantised graph against its source.

    Attributes:
        tensors: every quantised matrix, in order of the graph.
        untouched: number of initialisers that are the source's own.
        changed: names of initialisers that should be the source's own and are not.
    """

    tensors: tuple[TensorError, ...]
    untouched: int
    changed: tuple[str, ...]

    @property
    def worst(self) -> TensorError:
        """The matrix with the largest relative error."""
        return max(self.tensors, key=lambda tensor: (not tensor.is_within, tensor.relative))

    @property
    def reasons(self) -> tuple[str, ...]:
        """One line each for what is wrong; none where all is as it must be."""
        outside = [
            f"{tensor.name}: a value is {tensor.of_bound:.3g} times as far from the source as {tensor.bits} bits allow"
            for tensor in self.tensors
            if not tensor.is_within
        ]
        return (*outside, *(f"{name}: not the source's values" for name in self.changed))


def quantisation_errors(source: Path, target: Path) -> QuantisationErrors:
    """Compare a quantised graph with its source, both read from disk, one matrix at a time.

    Raises:
        BadInputError: nothing is quantised in the target, or something that the source does not have.
    """
    import onnx_ir  # noqa: PLC0415 - comes with an extra

    before, after = onnx_ir.load(source).graph, onnx_ir.load(target).graph
    weights = {weight.name: weight for weight in weights_of(before)}
    tensors: dict[str, TensorError] = {}
    parts: set[str] = set()
    for node in after:
        if node.op_type != "MatMulNBits":
            continue
        packed, scales, zero_points = (_initializer(value, target) for value in node.inputs[1:4])
        bits = node.attributes["bits"].as_int()
        name = str(packed.name).removesuffix(f"_Q{bits}")
        if name not in weights:
            raise BadInputError(f"{target} has a quantised matrix {packed.name!r}, and {source} no {name!r}")
        parts |= {str(tensor.name) for tensor in (packed, scales, zero_points)}
        if name not in tensors:
            block = node.attributes["block_size"].as_int()
            found = (packed.numpy(), scales.numpy(), zero_points.numpy())
            tensors[name] = _error(weights[name], found, bits, block)
    if not tensors:
        raise BadInputError(f"{target} has no quantised matrix")
    others = [value for name, value in after.initializers.items() if name not in parts]
    changed = tuple(str(value.name) for value in others if not _is_equal(value, before))
    return QuantisationErrors(tuple(tensors.values()), len(others) - len(changed), changed)


def dequantised(
    packed: NDArray[Any], scales: NDArray[Any], zero_points: NDArray[Any], bits: int
) -> NDArray[np.float64]:
    """(q - z) s, [N, K rounded up to whole blocks]; arguments as `block_quantised` returns them."""
    columns, blocks = scales.shape
    integers = _unpacked(packed, bits).reshape(columns, blocks, -1).astype(np.float64)
    zeros = _unpacked(zero_points.reshape(columns, -1), bits).reshape(columns, -1)[:, :blocks, None]
    values: NDArray[np.float64] = (integers - zeros) * scales[..., None].astype(np.float64)
    return values.reshape(columns, -1)


def _unpacked(array: NDArray[Any], bits: int) -> NDArray[Any]:
    """Integers of 4 bits lie two in a byte, the first in the lower half."""
    return array if bits == 8 else np.stack((array & 15, array >> 4), axis=-1)


def _error(
    weight: Weight, found: tuple[NDArray[Any], NDArray[Any], NDArray[Any]], bits: int, block: int
) -> TensorError:
    source = weight.values().T  # [N, K]
    scales = found[1]
    error = np.abs(dequantised(*found, bits)[:, : source.shape[1]] - source)
    steps, limits = 2**bits - 1, np.finfo(scales.dtype)
    bounds = np.abs(scales.astype(np.float64)) * (0.5 + 2 * steps * float(limits.eps))
    bounds += steps * float(limits.smallest_subnormal)
    shares = error / np.repeat(bounds, block, axis=1)[:, : source.shape[1]]
    norm = float(np.linalg.norm(source.astype(np.float64)))
    distance = float(np.linalg.norm(error))
    return TensorError(weight.name, bits, distance / norm if norm else distance, float(shares.max()))


def _initializer(value: onnx_ir.Value | None, target: Path) -> onnx_ir.TensorProtocol:
    if value is None or value.const_value is None:
        raise BadInputError(f"{target} has a quantised product without constant weights")
    return value.const_value


def _is_equal(value: onnx_ir.Value, before: onnx_ir.Graph) -> bool:
    original = before.initializers.get(str(value.name))
    if original is None or original.const_value is None or value.const_value is None:
        return False
    ours, theirs = value.const_value, original.const_value
    return bool(ours.dtype == theirs.dtype and ours.tobytes() == theirs.tobytes())
