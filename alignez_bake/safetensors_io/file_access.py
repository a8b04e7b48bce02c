"""Reading parts of a file whose header was checked.

Each call opens the file for itself: nothing stays open, any number of threads may read, and a folder of
hundreds of shards needs no handles. The file must still be the one whose header was read.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from alignez_bake.errors import BadInputError
from alignez_bake.safetensors_io.dtypes import BY_NAME
from alignez_bake.safetensors_io.header import Header, TensorEntry, file_identity
from alignez_bake.safetensors_io.strict_json import shown

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

    from numpy.typing import NDArray

BLOCK_BYTES: Final = 8 * 1024 * 1024


@contextmanager
def open_data(header: Header) -> Iterator[BinaryIO]:
    """The header's file, opened for unbuffered reading.

    Raises:
        BadInputError: the file is gone, unreadable, or no longer the one whose header was read.
    """
    try:
        with header.path.open("rb", buffering=0) as file:
            if file_identity(os.fstat(file.fileno())) != header.identity:
                raise BadInputError(f"{header.path} changed after its header was read: run again when it is at rest")
            yield file
    except OSError as error:
        raise BadInputError(f"{header.path}: cannot be read ({error.strerror or error})") from error


def check_unchanged(header: Header) -> None:
    """Refuse a file that is no longer the one whose header was read.

    Raises:
        BadInputError: another file lies there, its size or time of change is another, or none is there.
    """
    with open_data(header):
        pass


def read_into(file: BinaryIO, header: Header, offset: int, buffer: memoryview) -> None:
    """Fill `buffer` from byte `offset` of the data.

    Raises:
        BadInputError: the file ends before.
    """
    file.seek(header.data_offset + offset)
    filled = 0
    while filled < len(buffer):  # one call of the system reads at most 2 GiB
        count = file.readinto(buffer[filled:])  # type: ignore[attr-defined]
        if not count:
            raise BadInputError(f"{header.path} was cut short while it was read: run again when it is at rest")
        filled += count


def read_tensor(header: Header, entry: TensorEntry) -> NDArray[Any]:
    """A fresh, writable array of the tensor's stored dtype and shape, C-contiguous.

    Raises:
        BadInputError: values packed below one byte (F4, F6), or the file changed.
    """
    dtype = BY_NAME[entry.dtype].numpy
    if dtype is None:
        raise BadInputError(
            f"{header.path}: tensor {shown(entry.name)} has dtype {entry.dtype}, packed below one byte, "
            "which cannot be edited: use a base whose weights are BF16, F16 or F32"
        )
    flat = np.empty(entry.nbytes, dtype=np.uint8)
    with open_data(header) as file:
        read_into(file, header, entry.begin, flat.data)
    return flat.view(dtype).reshape(entry.shape)


def iter_range(header: Header, begin: int, end: int, max_bytes: int = BLOCK_BYTES) -> Iterator[memoryview]:
    """Blocks of bytes [begin, end) of the data, in order, each of at most `max_bytes`.

    Each block is its own memory: it stays valid, and is freed with its last reference.

    Raises:
        ValueError: `max_bytes` below 1, or a range outside of the data.
        BadInputError: the file changed.
    """
    if max_bytes < 1 or not 0 <= begin <= end <= header.data_bytes:
        raise ValueError(f"{header.path}: no blocks of {max_bytes} bytes in [{begin}, {end}) of {header.data_bytes}")
    with open_data(header) as file:
        for offset in range(begin, end, max_bytes):
            block = np.empty(min(max_bytes, end - offset), dtype=np.uint8).data
            read_into(file, header, offset, block)
            yield block
