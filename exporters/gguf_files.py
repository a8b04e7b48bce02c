"""LoRA adapters and control vectors as llama.cpp reads them: GGUF files, by the official `gguf` package.

**LoRA adapter.** llama.cpp computes y = W z + (scale · alpha / r) · B (A z) wherever its graph multiplies with a tensor
that the adapter names, and adds the base's bias afterwards; r is the rank of that pair, `scale` the user's own. A file
holds the metadata

    general.type = "adapter"    general.architecture = llama.cpp's name    adapter.type = "lora"    adapter.lora.alpha

and for each tensor of the base two of its own, `<name>.weight.lora_a` and `<name>.weight.lora_b`. GGUF lists the
dimensions of a row-major array from the last to the first, so A [r, d_in] is {d_in, r} there and B [d_out, r] is
{r, d_out}. Of a mixture of experts, A [E, r, d_in] and B [E, d_out, r].

**Control vector.** `direction.N` is added at every position to the residual stream behind layer N, counted from 0:
the loader places `direction.1` first in its buffer, the buffer's first row belongs to layer 1, and the graph adds the
row of layer il after that layer's MLP has joined the stream. There is none for layer 0.

Source: llama.cpp, `src/llama-adapter.cpp`, `src/llama-graph.cpp` (build_lora_mm, build_cvec), `src/models/`, and
`common_control_vector_load` in `common/common.cpp`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from alignez_bake.exporters.gguf_names import gguf_package, llama_cpp_name, tensor_names

from alignez_bake.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from types import ModuleType

    from numpy.typing import NDArray

    from alignez_bake.architectures.architecture import Architecture

    Float32Array = NDArray[np.float32]

ADAPTER_FILE: Final = "adapter.gguf"
CONTROL_VECTOR_FILE: Final = "control_vector.gguf"

_CONTROL_VECTOR: Final = "controlvector"
_LAYER_COUNT: Final = f"{_CONTROL_VECTOR}.layer_count"
_MODEL_HINT: Final = f"{_CONTROL_VECTOR}.model_hint"
_ALPHA: Final = "adapter.lora.alpha"
_ADAPTER_TYPE: Final = "adapter.type"
_DIRECTION: Final = re.compile(r"direction\.([1-9][0-9]{0,5})")
_PREAMBLE_BYTES: Final = 24  # magic, version, number of tensors, number of metadata entries


@dataclass(frozen=True, eq=False)
class LoraPair:
    """The two factors of one map's change, W' = W + B A.

    Attributes:
        module: path of the map in the transformers module tree, such as `model.layers.3.self_attn.o_proj`.
        a: A [r, d_in], float32; [E, r, d_in] of a mixture of experts.
        b: B [d_out, r], float32; [E, d_out, r].
    """

    module: str
    a: Float32Array
    b: Float32Array

    def __post_init__(self) -> None:
        """Refuse what is no pair of factors.

        Raises:
            BadInputError: shapes or ranks that do not belong together, another dtype, or values not finite.
        """
        _check_pair(self.module, self.a, self.b)

    @property
    def rank(self) -> int:
        """r."""
        return int(self.a.shape[-2])


@dataclass(frozen=True, eq=False)
class LoraFile:
    """What a GGUF adapter holds.

    Attributes:
        architecture: llama.cpp's name of it.
        alpha: the effect of a pair of rank r is multiplied by alpha / r.
        pairs: A and B by the name of the base's tensor, such as `blk.3.attn_output.weight`.
    """

    architecture: str
    alpha: float
    pairs: Mapping[str, tuple[Float32Array, Float32Array]]


@dataclass(frozen=True, eq=False)
class ControlVectorFile:
    """What a GGUF control vector holds.

    Attributes:
        architecture: llama.cpp's name of it.
        shifts: by layer, from 1: what is added to the residual stream behind it, [d].
    """

    architecture: str
    shifts: Mapping[int, Float32Array]


def write_lora(
    path: Path, architecture: Architecture, config: Mapping[str, Any], pairs: Sequence[LoraPair], *, alpha: float
) -> None:
    """Write a LoRA adapter. The same input gives the same bytes.

    Args:
        path: the file to make.
        architecture: of the base.
        config: the base's config.json.
        pairs: at least one, each of another module.
        alpha: llama.cpp multiplies the effect of a pair of rank r by alpha / r; for zero it multiplies by 1.

    Raises:
        BadInputError: no pairs, two of one tensor, an alpha that is not finite, and as `tensor_names`.
    """
    if not pairs:
        raise BadInputError("a LoRA adapter needs at least one pair: llama.cpp would load it and change nothing")
    if not np.isfinite(alpha):
        raise BadInputError(f"a LoRA adapter has alpha {alpha}: it must be finite")
    names = tensor_names(architecture, config, [pair.module for pair in pairs])
    tensors: dict[str, Float32Array] = {}
    for pair in pairs:
        name = names[pair.module]
        if f"{name}.lora_a" in tensors:
            raise BadInputError(f"{pair.module} is the tensor {name}, for which there is a pair already")
        tensors[f"{name}.lora_a"] = pair.a
        tensors[f"{name}.lora_b"] = pair.b
    gguf = gguf_package()
    writer = gguf.GGUFWriter(path, llama_cpp_name(architecture.model_type))
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(_ADAPTER_TYPE, "lora")
    writer.add_float32(_ALPHA, float(alpha))
    _write_tensors(writer, tensors)


def write_control_vector(path: Path, architecture: Architecture, shifts: Mapping[int, NDArray[Any]]) -> None:
    """Write a control vector. The same input gives the same bytes.

    Args:
        path: the file to make.
        architecture: of the base.
        shifts: by layer, counted from 0: what is added to the residual stream behind it, [d], float32.

    Raises:
        BadInputError: no shifts, layer 0, several widths, another dtype or values not finite, an architecture that
            llama.cpp lacks, or gguf is missing.
    """
    if not shifts:
        raise BadInputError("a control vector needs at least one shift")
    if min(shifts) < 1:
        raise BadInputError(f"a control vector has a shift for layer {min(shifts)}: llama.cpp has them from layer 1 on")
    tensors = {f"direction.{layer}": shifts[layer] for layer in sorted(shifts)}
    for name, values in tensors.items():
        _check_array(name, values, (1,))
    _one_width(tensors)
    gguf = gguf_package()
    hint = llama_cpp_name(architecture.model_type)
    writer = gguf.GGUFWriter(path, _CONTROL_VECTOR)
    writer.add_string(_MODEL_HINT, hint)
    writer.add_int32(_LAYER_COUNT, len(shifts))
    _write_tensors(writer, tensors)


def read_lora(path: Path) -> LoraFile:
    """Read a LoRA adapter back.

    Raises:
        BadInputError: no GGUF file, another kind of it, cut off, tensors without their partner, shapes that do not
            belong together, or gguf is missing.
    """
    reader = _open(path)
    for key, expected in (("general.type", "adapter"), (_ADAPTER_TYPE, "lora")):
        if (value := _metadata(reader, key, path)) != expected:
            raise BadInputError(f"{path} has {key} = {value!r}: a LoRA adapter has {expected!r}")
    alpha = _metadata(reader, _ALPHA, path)
    if not isinstance(alpha, float) or not np.isfinite(alpha):
        raise BadInputError(f"{path} has {_ALPHA} = {alpha!r}: it must be a finite number")
    tensors = _tensors(reader, path)
    pairs = {}
    for name in tensors:
        base, _, part = name.rpartition(".")
        if part not in ("lora_a", "lora_b") or not {f"{base}.lora_a", f"{base}.lora_b"} <= tensors.keys():
            raise BadInputError(f"{path} has the tensor {name!r}: a LoRA adapter has pairs of .lora_a and .lora_b")
        pairs[base] = (tensors[f"{base}.lora_a"], tensors[f"{base}.lora_b"])
    for base, (a, b) in pairs.items():
        _check_pair(f"{path}: {base}", a, b)
    return LoraFile(str(_metadata(reader, "general.architecture", path)), alpha, pairs)


def read_control_vector(path: Path) -> ControlVectorFile:
    """Read a control vector back.

    Raises:
        BadInputError: no GGUF file, another kind of it, cut off, tensors of other names or several widths, a layer
            count that is not theirs, or gguf is missing.
    """
    reader = _open(path)
    if (kind := _metadata(reader, "general.architecture", path)) != _CONTROL_VECTOR:
        raise BadInputError(f"{path} has general.architecture = {kind!r}: a control vector has {_CONTROL_VECTOR!r}")
    tensors = _tensors(reader, path)
    shifts = {}
    for name, values in tensors.items():
        match = _DIRECTION.fullmatch(name)
        if match is None:
            raise BadInputError(f"{path} has the tensor {name!r}: a control vector has direction.1, direction.2, ...")
        _check_array(f"{path}: {name}", values, (1,))
        shifts[int(match[1])] = values
    _one_width(tensors)
    if (count := _metadata(reader, _LAYER_COUNT, path)) != len(shifts):
        raise BadInputError(f"{path} has {_LAYER_COUNT} = {count!r}, but {len(shifts)} directions")
    return ControlVectorFile(str(_metadata(reader, _MODEL_HINT, path)), shifts)


def _write_tensors(writer: Any, tensors: Mapping[str, NDArray[Any]]) -> None:  # noqa: ANN401 - gguf has no types
    try:
        for name, values in tensors.items():
            writer.add_tensor(name, np.ascontiguousarray(values))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _open(path: Path) -> Any:  # noqa: ANN401 - gguf.GGUFReader
    reader = _bounded_reader(gguf_package())
    try:
        size = path.stat().st_size
        if size < _PREAMBLE_BYTES:
            raise BadInputError(f"{path} is no GGUF file: it has {size} bytes")
        return reader(path)
    except OSError as error:
        raise BadInputError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, IndexError, KeyError, OverflowError, RecursionError) as error:
        # What the reader raises on a file that is cut off or damaged; it does not name the file.
        raise BadInputError(f"{path} is no whole GGUF file: {error}") from error


def _bounded_reader(gguf: ModuleType) -> Any:  # noqa: ANN401 - a class of the untyped package
    class BoundedReader(gguf.GGUFReader):  # type: ignore[misc, name-defined]
        """The package's reader gives less than asked for at a file's end, and would count an array of any length."""

        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:  # noqa: ANN401
            values = super()._get(offset, dtype, count, override_order)
            if values.size < count:
                raise ValueError(f"{count} values from byte {offset} on reach behind its end")
            return values

    return BoundedReader


def _metadata(reader: Any, key: str, path: Path) -> str | int | float:  # noqa: ANN401
    field = reader.get_field(key)
    if field is None:
        raise BadInputError(f"{path} has no metadata {key!r}")
    try:
        value = field.contents()
    except ValueError as error:  # a string that is no UTF-8; the package decodes it when it is asked for
        raise BadInputError(f"{path} has {key} of bytes that are no text: {error}") from error
    if not isinstance(value, str | int | float):
        raise BadInputError(f"{path} has {key} of {type(value).__name__}: it must be one value")
    return value


def _tensors(reader: Any, path: Path) -> dict[str, Float32Array]:  # noqa: ANN401
    tensors = {}
    for tensor in reader.tensors:
        if tensor.data.dtype != np.float32:
            raise BadInputError(f"{path} has {tensor.name} as {tensor.tensor_type.name}: only F32 is read here")
        # A copy, so that the file need not stay open.
        tensors[str(tensor.name)] = np.array(tensor.data)
    if not tensors:
        raise BadInputError(f"{path} holds no tensors")
    return tensors


def _check_pair(name: str, a: NDArray[Any], b: NDArray[Any]) -> None:
    for part, values in (("A", a), ("B", b)):
        _check_array(f"{name}: {part}", values, (2, 3))
    if a.ndim != b.ndim or a.shape[:-2] != b.shape[:-2] or a.shape[-2] != b.shape[-1]:
        raise BadInputError(
            f"{name}: A {list(a.shape)} and B {list(b.shape)} are no pair: they must be [r, d_in] and [d_out, r], "
            "or both with the same experts before that"
        )


def _check_array(name: str, values: NDArray[Any], dimensions: tuple[int, ...]) -> None:
    if values.dtype != np.float32 or values.ndim not in dimensions or values.size == 0:
        needed = " or ".join(map(str, dimensions))
        raise BadInputError(f"{name} is {values.dtype} {list(values.shape)}: it must be float32 of {needed} dimensions")
    if not np.isfinite(values).all():
        raise BadInputError(f"{name} holds values that are not finite")


def _one_width(tensors: Mapping[str, NDArray[Any]]) -> None:
    widths = sorted({values.size for values in tensors.values()})
    if len(widths) > 1:
        raise BadInputError(f"the shifts of a control vector have widths {widths}: all must have the same")
