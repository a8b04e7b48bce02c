"""The header of a safetensors file, read strictly: what it says is bounded by the file itself.

A file is: 8 bytes, the header's length N (little-endian); N bytes of JSON, padded with spaces; then the data.
The JSON object maps each tensor to its dtype, shape and [begin, end) in the data, and `__metadata__` to a map
of strings. The tensors cover the data without a hole, an overlap or a rest. Whatever is accepted here, the
safetensors library accepts too; we refuse more (repeated keys, unknown fields).
"""

from __future__ import annotations

import math
import os
import stat
import struct
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

from alignez_bake.errors import BadInputError
from alignez_bake.safetensors_io.dtypes import BY_NAME
from alignez_bake.safetensors_io.strict_json import parse_object, shown

MAX_HEADER_BYTES: Final = 100_000_000  # the library's own bound
MAX_DIMENSIONS: Final = 64  # numpy's own bound
METADATA_KEY: Final = "__metadata__"
_FIELDS: Final = frozenset({"dtype", "shape", "data_offsets"})
_LENGTH: Final = struct.Struct("<Q")
_MAX_INT64: Final = 2**63 - 1

_PICKLE: Final = "convert it to safetensors with a tool that you trust; pickles run code when loaded and are not read"
# First bytes of what people and servers put in a weight file's place, and what to do about it.
_FOREIGN: Final[tuple[tuple[bytes, str], ...]] = (
    (b"version https://git-lfs", "is a git-LFS pointer, the weights were not downloaded: run `git lfs pull`"),
    (b"<", "is an HTML or XML page, probably a server's error message: download the file again"),
    (b"PK\x03\x04", f"is a zip archive, probably a pickle written by torch.save: {_PICKLE}"),
    (b"\x80", f"is a Python pickle, probably written by torch.save: {_PICKLE}"),
    (b"GGUF", "is a GGUF file: use the safetensors checkpoint that it was made from"),
    (b"\x89HDF", "is an HDF5 file: convert it to safetensors"),
    (b"{", "is JSON text, not a safetensors file: the 8 bytes of the header's length are missing"),
)


@dataclass(frozen=True, slots=True)  # a model may have 100 000 of them
class TensorEntry:
    """What a header says about one tensor.

    Attributes:
        name: its key.
        dtype: the file's spelling, such as "BF16"; always one of `dtypes.BY_NAME`.
        shape: its dimensions, () for a scalar.
        begin: first byte, counted from the start of the data (`Header.data_offset`).
        end: byte after its last one.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        """Size of the data in bytes."""
        return self.end - self.begin

    @property
    def rows_and_columns(self) -> tuple[int, int]:
        """The tensor as rows of its last dimension; without dimensions it is one row of one value."""
        return math.prod(self.shape[:-1]), self.shape[-1] if self.shape else 1


@dataclass(frozen=True)
class Header:
    """A header that was read and checked.

    Attributes:
        path: the file.
        entries: every tensor by name, in the order of the data.
        json_order: the same names in the order of the JSON text.
        metadata: the `__metadata__` map; empty if absent.
        header_bytes: the JSON text as it lies in the file, padding included, without the 8 bytes of length.
        data_offset: where the data begins in the file, 8 + len(header_bytes).
        file_size: size of the file in bytes.
        identity: device, inode, size and time of change when it was read; later reads refuse another file.
    """

    path: Path
    entries: dict[str, TensorEntry]
    json_order: tuple[str, ...]
    metadata: dict[str, str]
    header_bytes: bytes
    data_offset: int
    file_size: int
    identity: tuple[int, int, int, int]

    @property
    def data_bytes(self) -> int:
        """Size of all tensors' data in bytes."""
        return self.file_size - self.data_offset


def file_identity(status: os.stat_result) -> tuple[int, int, int, int]:
    """What tells one state of a file from another: device, inode, size, time of change."""
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def read_header(path: str | Path) -> Header:
    """Read and check the header of one file. The data itself is not touched.

    Args:
        path: a safetensors file; symlinks are followed.

    Returns:
        The header.

    Raises:
        BadInputError: no such file, a directory, unreadable, not a safetensors file (git-LFS pointers, pickles
            and HTML pages are named), truncated, or a header that contradicts itself or the file.
    """
    path = Path(path)
    try:
        _check_regular(path)
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            size = status.st_size
            head = file.read(64)
            length = _header_length(head, size, path)
            file.seek(_LENGTH.size)
            raw = file.read(length)
    except OSError as error:
        raise BadInputError(
            f"{path}: cannot be read ({error.strerror or error}): check the path and its permissions"
        ) from error
    if len(raw) != length:
        raise BadInputError(f"{path} changed while it was read: wait until the download is complete, then run again")
    if not raw.startswith(b"{"):
        raise BadInputError(
            f"{path}: the header begins with {shown(raw[:8])}, not with '{{', so this is not a safetensors file: "
            "download or convert it again"
        )
    place = f"header of {path}"
    fields = parse_object(raw, place)
    metadata = _metadata(fields.pop(METADATA_KEY, {}), place)
    entries = [_entry(name, value, place) for name, value in fields.items()]
    in_file_order = sorted(entries, key=lambda entry: (entry.begin, entry.end))
    data_offset = _LENGTH.size + length
    _check_coverage(in_file_order, size - data_offset, path)
    return Header(
        path=path,
        entries={entry.name: entry for entry in in_file_order},
        json_order=tuple(entry.name for entry in entries),
        metadata=metadata,
        header_bytes=raw,
        data_offset=data_offset,
        file_size=size,
        identity=file_identity(status),
    )


def _check_regular(path: Path) -> None:
    """Refuse what cannot be opened as a file, before opening it: a named pipe would wait for ever."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        what = "is a symlink to nothing" if path.is_symlink() else "does not exist"
        raise BadInputError(f"{path} {what}: check the path, or download the file") from None
    if stat.S_ISDIR(mode):
        raise BadInputError(f"{path} is a directory: a safetensors file is expected here")
    if not stat.S_ISREG(mode):
        raise BadInputError(f"{path} is not a regular file: a safetensors file is expected here")


def _header_length(head: bytes, file_size: int, path: Path) -> int:
    """The header's length, checked against the file, from the file's first bytes."""
    if file_size == 0:
        raise BadInputError(f"{path} is empty (0 bytes): download it again")
    if len(head) < _LENGTH.size:
        raise BadInputError(f"{path} has {file_size} bytes, too few for a safetensors file: download it again")
    length: int = _LENGTH.unpack(head[: _LENGTH.size])[0]
    bound = min(MAX_HEADER_BYTES, file_size - _LENGTH.size)
    if length <= bound:
        return length
    for magic, what in _FOREIGN:
        if head.lstrip().startswith(magic):
            raise BadInputError(f"{path} {what}")
    raise BadInputError(
        f"{path}: the header's length is {length} bytes, but this file allows at most {bound}: "
        "it is truncated or not a safetensors file; download it again"
    )


def _metadata(value: object, place: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise BadInputError(f"{place}: {METADATA_KEY} is {shown(value)}: it must map strings to strings")
    for key, text in value.items():
        if not isinstance(text, str):
            raise BadInputError(f"{place}: {METADATA_KEY} has {shown(key)}: {shown(text)}, but values must be strings")
    return value


def _entry(name: str, value: object, place: str) -> TensorEntry:
    """One tensor of the header: known fields and dtype, whole dimensions, and a size that follows from them."""
    where = f"{place}: tensor {shown(name)}"
    if not isinstance(value, dict) or value.keys() != _FIELDS:
        fields = sorted(value) if isinstance(value, dict) else value
        raise BadInputError(f"{where} has {shown(fields)}: it needs dtype, shape and data_offsets, and nothing else")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BY_NAME:
        raise BadInputError(f"{where} has the unknown dtype {shown(dtype)}: known are {', '.join(BY_NAME)}")
    if not _are_sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise BadInputError(
            f"{where} has shape {shown(shape)}: it must be a list of at most {MAX_DIMENSIONS} integers, none negative"
        )
    if not _are_sizes(offsets) or len(offsets) != 2 or max(offsets) > _MAX_INT64:
        raise BadInputError(
            f"{where} has data_offsets {shown(offsets)}: they must be two integers, none negative or beyond "
            f"{_MAX_INT64}"
        )
    begin, end = offsets
    bits = BY_NAME[dtype].bits
    # Zeros left out: numpy counts like this when it checks what an array may hold.
    if math.prod(n for n in shape if n) * bits > 8 * _MAX_INT64:
        raise BadInputError(f"{where} has shape {shown(shape)}, more than any memory holds: the header is damaged")
    total_bits = math.prod(shape) * bits
    if total_bits % 8:
        raise BadInputError(f"{where}: {math.prod(shape)} values of {dtype} do not fill whole bytes: write it anew")
    if end - begin != total_bits // 8:
        raise BadInputError(
            f"{where} has data_offsets {shown(offsets)}, {end - begin} bytes, but dtype {dtype} and shape "
            f"{shown(shape)} need {total_bits // 8}: the header is damaged"
        )
    # The table's own string: the parser makes a new one for every tensor.
    return TensorEntry(name, BY_NAME[dtype].name, tuple(shape), begin, end)


def _are_sizes(value: object) -> bool:
    """Whether a JSON value is a list of integers from 0 (true and 1.0 are none)."""
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


def _check_coverage(entries: list[TensorEntry], data_bytes: int, path: Path) -> None:
    """Tensors, sorted by place, must cover the data without hole, overlap or rest."""
    if entries and entries[-1].end > data_bytes:
        last = entries[-1]
        raise BadInputError(
            f"{path} is truncated: tensor {shown(last.name)} ends at byte {last.end} of the data, of which the file "
            f"holds {data_bytes}; download it again"
        )
    if entries and entries[0].begin:
        raise BadInputError(
            f"{path}: there is a hole of {entries[0].begin} bytes before the first tensor: write it anew"
        )
    for left, right in pairwise(entries):
        if right.begin != left.end:
            fault = "overlap" if right.begin < left.end else "leave a hole between them"
            raise BadInputError(
                f"{path}: tensors {shown(left.name)} [{left.begin}, {left.end}) and {shown(right.name)} "
                f"[{right.begin}, {right.end}) {fault}: the header is damaged"
            )
    covered = entries[-1].end if entries else 0
    if covered != data_bytes:
        raise BadInputError(
            f"{path}: {data_bytes - covered} bytes after the last tensor belong to none: the file is damaged; "
            "write it anew"
        )
