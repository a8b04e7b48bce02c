"""Pickled weights, as older models are released, turned into safetensors files.

A pickle is a program. torch's weights-only loader knows those steps alone that make tensors and plain containers, and
refuses all others before they run; as far as that loader is sound, no code of the file's runs. So it is used only when
somebody asks for it. The files are mapped, so that memory holds no more than the tensor that is being written.

The head of a model whose config ties it to the embedding is left out where the pickle holds both as one tensor, as
`save_pretrained` leaves it out. Whatever else shares memory is written once for each name.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import re
from typing import TYPE_CHECKING, Final

import ml_dtypes
import numpy as np

from alignez_bake.errors import BadInputError
from alignez_bake.exporters.output_folder import check_space
from alignez_bake.progress import NoProgress
from alignez_bake.safetensors_io.dtypes import Array, file_dtype_of
from alignez_bake.safetensors_io.folder_layout import INDEX_FILE, MAX_INDEX_BYTES, SINGLE_FILE, check_inside
from alignez_bake.safetensors_io.header import METADATA_KEY, file_identity
from alignez_bake.safetensors_io.strict_json import parse_object, shown
from alignez_bake.safetensors_io.writer import write_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

    from alignez_bake.progress import Progress

PICKLE: Final = "pytorch_model.bin"
PICKLE_INDEX: Final = "pytorch_model.bin.index.json"
_SHARD: Final = re.compile(r"pytorch_(model-\d{5}-of-\d{5})\.bin")
# What torch raises for a file that is damaged, of an old format, or holds more than weights.
_LOADING_ERRORS: Final = (
    *(pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, TypeError),
    *(AttributeError, AssertionError, NotImplementedError, UnicodeDecodeError, OverflowError, MemoryError),
)


def is_pickled(folder: Path) -> bool:
    """Whether a folder holds pickled weights and no others that are read."""
    if any(os.path.lexists(folder / name) for name in (SINGLE_FILE, INDEX_FILE)):
        return False
    return any(os.path.lexists(folder / name) for name in (PICKLE, PICKLE_INDEX))


def convert_pickles(
    folder: Path, target: Path, *, tied: tuple[str, str] | None, progress: Progress | None = None
) -> None:
    """Write the weights of a folder as safetensors files, one for each pickle, and their index.

    Args:
        folder: with `pytorch_model.bin`, or its index and shards.
        target: an empty folder.
        tied: the ends of the keys of head and embedding, where config.json says that they are one tensor.
        progress: counts files.

    Raises:
        BadInputError: a pickle that holds more than tensors, a damaged one, an index that does not fit, no space.
    """
    weight_map = None if os.path.lexists(folder / PICKLE) else _weight_map(folder)
    names = [PICKLE] if weight_map is None else sorted(set(weight_map.values()))
    for name in names:
        check_inside(folder, name)
    check_space(target, sum((folder / name).stat().st_size for name in names))
    new_map: dict[str, str] = {}
    total = 0
    with (progress or NoProgress()).task("reading pickles", len(names)) as advance:
        for name in names:
            tensors = _loaded(folder / name)
            expected = tensors.keys() if weight_map is None else {key for key in weight_map if weight_map[key] == name}
            if differing := sorted(expected ^ tensors.keys()):
                raise BadInputError(
                    f"{folder / PICKLE_INDEX} and {name} do not agree on tensor {shown(differing[0])}: download the "
                    "model anew"
                )
            kept = {key: _array(folder / name, key, value) for key, value in _untied(tensors, tied).items()}
            new = SINGLE_FILE if weight_map is None else f"{_SHARD.fullmatch(name)[1]}.safetensors"  # type: ignore[index]
            total += _written(folder / name, target / new, kept)
            new_map |= dict.fromkeys(kept, new)
            del tensors, kept  # unmaps the file
            advance()
    if weight_map is not None:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(new_map.items()))}
        (target / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _weight_map(folder: Path) -> dict[str, str]:
    """The index of sharded pickles: from tensors to names of files in the folder.

    Raises:
        BadInputError: no such index.
    """
    path = folder / PICKLE_INDEX
    check_inside(folder, PICKLE_INDEX)
    if not path.is_file() or path.stat().st_size > MAX_INDEX_BYTES:
        raise BadInputError(f"{path} is no index of at most {MAX_INDEX_BYTES} bytes: download it again")
    weight_map = parse_object(path.read_bytes(), str(path)).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadInputError(f"{path}: weight_map is {shown(weight_map)}: it must map at least one tensor to its file")
    for key, name in weight_map.items():
        if not isinstance(name, str) or not _SHARD.fullmatch(name):
            raise BadInputError(
                f"{path}: tensor {shown(key)} lies in {shown(name)}: it must be a file of the same folder named like "
                "pytorch_model-00001-of-00002.bin"
            )
    return weight_map


def _loaded(path: Path) -> Mapping[str, torch.Tensor]:
    """The tensors of a pickle, mapped.

    Raises:
        BadInputError: anything else in it.
    """
    import torch  # noqa: PLC0415 - for those alone who asked for pickles

    if not path.is_file():
        raise BadInputError(f"{path} is not a regular file: pickled weights are expected here")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise BadInputError(
            f"{path} holds more than weights, so that unpickling it could run code: it is not read; convert it with a "
            f"tool that you trust, where you trust its source ({_first_line(error)})"
        ) from None
    except _LOADING_ERRORS as error:
        raise BadInputError(
            f"{path} cannot be read as pickled weights, in the format that torch has since 1.6 "
            f"({_first_line(error)}): download it again, or save it as safetensors with a tool that you trust"
        ) from None
    if not isinstance(found, dict) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in found.items()
    ):
        raise BadInputError(f"{path} is no table of tensors by name: it is not how transformers saves a model")
    return found


def _untied(tensors: Mapping[str, torch.Tensor], tied: tuple[str, str] | None) -> dict[str, torch.Tensor]:
    """All but a head that is the embedding."""
    if tied is None:
        return dict(tensors)
    heads, embeddings = ([key for key in tensors if key == end or key.endswith(f".{end}")] for end in tied)
    same = {head for head in heads if any(_is_same(tensors[head], tensors[other]) for other in embeddings)}
    return {key: value for key, value in tensors.items() if key not in same}


def _is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return (one.data_ptr(), one.dtype, one.shape, one.stride()) == (
        other.data_ptr(),
        other.dtype,
        other.shape,
        other.stride(),
    )


def _array(path: Path, name: str, tensor: torch.Tensor) -> Array:
    """The values of a tensor where they lie.

    Raises:
        BadInputError: a tensor of a kind that safetensors files do not hold, or one that is larger than its memory.
    """
    import torch  # noqa: PLC0415 - as above

    views = {
        torch.bfloat16: (torch.uint16, ml_dtypes.bfloat16),
        torch.float8_e4m3fn: (torch.uint8, ml_dtypes.float8_e4m3fn),
        torch.float8_e5m2: (torch.uint8, ml_dtypes.float8_e5m2),
    }
    if (
        tensor.layout is not torch.strided
        or tensor.device.type != "cpu"
        or name == METADATA_KEY
        or math.prod(tensor.shape) * tensor.element_size() > tensor.untyped_storage().nbytes()
    ):
        raise BadInputError(
            f"{path}: {shown(name)} is no plain tensor ({tensor.layout}, {list(tensor.shape)}): save the model anew "
            "with a tool that you trust"
        )
    try:
        plain, dtype = views.get(tensor.dtype, (tensor.dtype, None))
        array: Array = tensor.detach().view(plain).numpy()
        array = array if dtype is None else array.view(np.dtype(dtype))
        file_dtype_of(array.dtype)
    except (ValueError, RuntimeError, TypeError) as error:
        raise BadInputError(
            f"{path}: tensor {shown(name)} cannot be stored as safetensors ({_first_line(error)}): save the model "
            "anew with a tool that you trust"
        ) from None
    return array


def _written(source: Path, target: Path, tensors: Mapping[str, Array]) -> int:
    """Write a file with the time of its source, by which an unfinished bake knows its base again; bytes of its data.

    Raises:
        BadInputError: no space, or a source that changed meanwhile.
    """
    before = source.stat()
    size = sum(array.nbytes for array in tensors.values())
    check_space(target, size)
    write_tensors(target, tensors, {"format": "pt"})
    if file_identity(source.stat()) != file_identity(before):
        raise BadInputError(f"{source} changed while it was read: nothing was written; start again")
    os.utime(target, ns=(before.st_mtime_ns, before.st_mtime_ns))
    return size


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
