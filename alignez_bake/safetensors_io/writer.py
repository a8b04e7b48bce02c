"""Writing a safetensors file of arrays, and the header of any.

The file appears whole or not at all, is synced, and is read back: its checked header is returned. Bakes are written by
`alignez_bake.streaming`, which shares the layout with this.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from alignez_bake.safetensors_io.dtypes import BY_NAME, RANK, Array, file_dtype_of, numpy_dtype_of
from alignez_bake.safetensors_io.file_access import BLOCK_BYTES
from alignez_bake.safetensors_io.header import MAX_HEADER_BYTES, METADATA_KEY, Header, read_header
from alignez_bake.safetensors_io.new_file import new_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import BinaryIO

_ALIGNMENT: Final = 8


class TensorSlot(NamedTuple):
    """A tensor of a file to be written: its key, the file's spelling of its dtype, its dimensions."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size of its data in bytes."""
        return math.prod(self.shape) * BY_NAME[self.dtype].bits // 8


def write_tensors(path: str | Path, tensors: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> Header:
    """Write tensors to a new file; the same tensors give the same bytes, those that the library writes.

    Tensors are sorted by dtype, the widest first (so that each is aligned), then by name. The metadata keeps its
    order. The header is padded with spaces to a multiple of 8 bytes.

    Args:
        path: the file to write; an existing one is replaced.
        tensors: arrays of any shape and memory layout, of a dtype that the format knows.
        metadata: strings for the header's `__metadata__`; absent where empty.

    Returns:
        The header of the new file.

    Raises:
        BadInputError: the file cannot be written.
        ValueError: a dtype, name or metadata that the format has no place for.
    """
    path = Path(path)
    slots = [TensorSlot(name, file_dtype_of(array.dtype), array.shape) for name, array in tensors.items()]
    slots.sort(key=lambda slot: (-RANK[slot.dtype], slot.name))
    head = encode_header(slots, metadata or {})
    with new_file(path) as file:
        file.write(head)
        for slot in slots:
            _write_values(file, tensors[slot.name])
    return read_header(path)


def aligned(slots: list[TensorSlot]) -> list[TensorSlot]:
    """The slots as they are if each begins at a multiple of its item size, else the widest first."""
    offset = 0
    for slot in slots:
        if offset * 8 % BY_NAME[slot.dtype].bits:
            return sorted(slots, key=lambda slot: -BY_NAME[slot.dtype].bits)
        offset += slot.nbytes
    return slots


def encode_header(slots: list[TensorSlot], metadata: Mapping[str, str]) -> bytes:
    """Length, JSON and padding for tensors that follow each other in this order."""
    fields: dict[str, Any] = {METADATA_KEY: dict(metadata)} if metadata else {}
    if not all(isinstance(text, str) for pair in metadata.items() for text in pair):
        raise ValueError("metadata of a safetensors file maps strings to strings")
    offset = 0
    for slot in slots:
        if slot.name == METADATA_KEY:
            raise ValueError(f"no tensor can be named {METADATA_KEY}")
        end = offset + slot.nbytes
        fields[slot.name] = {"dtype": slot.dtype, "shape": list(slot.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % _ALIGNMENT)
    if len(text) > MAX_HEADER_BYTES:
        raise ValueError(f"a header of {len(text)} bytes: safetensors files have at most {MAX_HEADER_BYTES}")
    return struct.pack("<Q", len(text)) + text


def _write_values(file: BinaryIO, array: Array) -> None:
    """Write an array in C order, block by block, little-endian."""
    dtype = numpy_dtype_of(file_dtype_of(array.dtype))
    file.writelines(np.ascontiguousarray(block, dtype).view(np.uint8).data for block in _blocks(array))


def _blocks(array: Array) -> Iterator[Array]:
    """The values in C order, whatever the memory layout, as flat arrays of at most one block."""
    count = BLOCK_BYTES // array.itemsize
    if array.flags.c_contiguous:
        flat = array.reshape(-1)
        for start in range(0, flat.size, count):
            yield flat[start : start + count]
    else:
        yield from np.nditer(array, flags=["external_loop", "buffered"], order="C", buffersize=count)
