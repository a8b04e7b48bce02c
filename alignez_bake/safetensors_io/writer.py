"""Writing safetensors files as a stream: never more than one tensor and one block in memory.

Three ways: `copy_with_replacements` keeps the file byte for byte but for the data of some tensors; `assemble_file`
puts a file together from tensors of another and new ones; `write_tensors` makes a file of arrays. Each file appears
whole or not at all, is synced, and is read back: its checked header is returned. Bakes are written by
`alignez_bake.streaming`, which shares the layout with these.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from alignez_bake.errors import BadInputError
from alignez_bake.safetensors_io.dtypes import (
    BY_NAME,
    RANK,
    Array,
    cast_once,
    file_dtype_of,
    is_float,
    is_plain_float,
    numpy_dtype_of,
)
from alignez_bake.safetensors_io.file_access import BLOCK_BYTES, iter_range
from alignez_bake.safetensors_io.header import MAX_HEADER_BYTES, METADATA_KEY, Header, TensorEntry, read_header
from alignez_bake.safetensors_io.new_file import new_file
from alignez_bake.safetensors_io.strict_json import shown

if TYPE_CHECKING:
    from typing import BinaryIO

Replacements = Mapping[str, Array] | Callable[[str], Array | None]

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


def copy_with_replacements(source: Header | str | Path, target: str | Path, replacements: Replacements) -> Header:
    """Copy a file, with the data of some tensors replaced. The header and all other bytes stay as they are.

    Args:
        source: the file, or its header as `TensorFolder.header` gives it.
        target: the file to write; may be `source` itself.
        replacements: new values by name, or a function that is asked once for each tensor, in the order of the
            data, and returns None for those that stay; its arrays are released one by one. Each array has
            exactly the stored dtype and shape, in any memory layout.

    Returns:
        The header of the new file.

    Raises:
        BadInputError: `source` cannot be read or changes, `target` cannot be written.
        ValueError: an array of another dtype or shape, or a name that is not in the file.
    """
    header, target = _header(source), Path(target)
    if isinstance(replacements, Mapping):
        unknown = sorted(replacements.keys() - header.entries.keys())
        if unknown:
            raise ValueError(f"{header.path} has no tensor {shown(unknown[0])}, which was to be replaced")
        replacement_of: Callable[[str], Array | None] = replacements.get
    else:
        replacement_of = replacements
    with new_file(target) as file:
        file.write(struct.pack("<Q", len(header.header_bytes)) + header.header_bytes)
        for entry in header.entries.values():
            array = replacement_of(entry.name)
            if array is None:
                _copy(file, header, entry)
                continue
            if file_dtype_of(array.dtype) != entry.dtype or array.shape != entry.shape:
                raise ValueError(
                    f"replacement of {shown(entry.name)} is {array.dtype} {array.shape}, but {header.path} stores "
                    f"{entry.dtype} {entry.shape}"
                )
            _write_values(file, array, TensorSlot(entry.name, entry.dtype, entry.shape), target)
            del array  # before the next one is made
    return read_header(target)


class Part(NamedTuple):
    """A tensor of a file that is put together.

    Attributes:
        name: its key.
        dtype: the file's spelling, such as "BF16".
        shape: its dimensions.
        values: gives its values, in any plain float dtype where `dtype` is one; they are rounded once. None: the
            bytes of the tensor of this name in the source, whose dtype and shape it has.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    values: Callable[[], Array] | None = None


def assemble_file(source: Header, target: str | Path, parts: Sequence[Part]) -> Header:
    """Write a file from tensors of another and from new ones; the metadata is the source's.

    The parts keep their order, unless that would leave a tensor at an offset that its dtype cannot be read from:
    then they are sorted, stably, the widest first.

    Args:
        source: header of the file that gives metadata and copied tensors.
        target: the file to write; may be the source itself.
        parts: what it shall hold.

    Returns:
        The header of the new file.

    Raises:
        BadInputError: `source` cannot be read or changes, `target` cannot be written, a finite value overflows its
            dtype.
        ValueError: a part that is given twice or not in the source, or values of another shape than the part's.
    """
    target = Path(target)
    by_name = {part.name: part for part in parts}
    if len(by_name) < len(parts):
        raise ValueError("a part is given twice")
    slots = aligned([TensorSlot(part.name, part.dtype, part.shape) for part in parts])
    with new_file(target) as file:
        file.write(encode_header(slots, source.metadata))
        for slot in slots:
            values = by_name[slot.name].values
            if values is None:
                entry = source.entries.get(slot.name)
                if entry is None or (entry.dtype, entry.shape) != (slot.dtype, slot.shape):
                    raise ValueError(f"{source.path} has no tensor {shown(slot.name)} of {slot.dtype} {slot.shape}")
                _copy(file, source, entry)
                continue
            array = values()
            if array.shape != slot.shape:
                raise ValueError(f"values of {shown(slot.name)} have shape {array.shape}, not {slot.shape}")
            _write_values(file, array, slot, target)
            del array  # before the next one is made
    return read_header(target)


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
            _write_values(file, tensors[slot.name], slot, path)
    return read_header(path)


def _header(source: Header | str | Path) -> Header:
    return source if isinstance(source, Header) else read_header(source)


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


def _copy(file: BinaryIO, header: Header, entry: TensorEntry) -> None:
    file.writelines(iter_range(header, entry.begin, entry.end))


def _write_values(file: BinaryIO, array: Array, slot: TensorSlot, target: Path) -> None:
    """Write an array in C order, cast block by block.

    Raises:
        BadInputError: a finite value becomes infinite, or a narrow code would be cast.
        ValueError: a dtype that cannot be cast to the slot's.
    """
    dtype = numpy_dtype_of(slot.dtype)
    given = file_dtype_of(array.dtype)
    if given != slot.dtype and not is_plain_float(given):
        where = f"{target}: tensor {shown(slot.name)}"
        if is_float(given):
            raise BadInputError(
                f"{where} has dtype {given}, whose values need a scale from elsewhere, and cannot simply become "
                f"{slot.dtype}: keep its dtype, or start from a dequantised base"
            )
        raise ValueError(f"{where} was given as {given}, but is to be {slot.dtype}")
    for block in _blocks(array):
        result = np.ascontiguousarray(cast_once(block, dtype))
        if given != slot.dtype and not np.isfinite(result).all():
            lost = np.isfinite(block) & ~np.isfinite(result)
            if lost.any():
                raise BadInputError(
                    f"{target}: tensor {shown(slot.name)} holds {block[lost][0]}, which overflows {slot.dtype}: "
                    "use a wider dtype, such as BF16 or F32"
                )
        file.write(result.view(np.uint8).data)


def _blocks(array: Array) -> Iterator[Array]:
    """The values in C order, whatever the memory layout, as flat arrays of at most one block."""
    count = BLOCK_BYTES // array.itemsize
    if array.flags.c_contiguous:
        flat = array.reshape(-1)
        for start in range(0, flat.size, count):
            yield flat[start : start + count]
    else:
        yield from np.nditer(array, flags=["external_loop", "buffered"], order="C", buffersize=count)
