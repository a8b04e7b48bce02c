"""Tensors of a file as read-only arrays over the file itself, which take no memory of the process's own.

The pages of a mapped file belong to the system's cache of files: they can be dropped at any time and read again, and
they do not count as anonymous memory. What it costs: the file must stay as it is. One that is cut short while it is
mapped ends the process with a bus error at the next touch of what is gone, which no code can turn into a message.
docs/decisions/streaming_memory.md says where that risk is taken, and why.
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from alignez_bake.errors import BadInputError
from alignez_bake.safetensors_io.dtypes import numpy_dtype_of
from alignez_bake.safetensors_io.file_access import open_data
from alignez_bake.safetensors_io.header import file_identity

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from alignez_bake.safetensors_io.header import Header


class MappedFile(NamedTuple):
    """A file that arrays lie over, as it was when it was mapped.

    Attributes:
        path: where it lay.
        identity: of `file_identity`.
    """

    path: Path
    identity: tuple[int, int, int, int]

    def check_not_written_into(self) -> None:
        """Refuse a file whose size or time of change is another: its arrays may have shown some of the new bytes.

        Where another file lies now, or none, nothing is wrong: the arrays keep the old one.

        Raises:
            BadInputError: it was written into.
        """
        try:
            now = file_identity(self.path.stat())
        except FileNotFoundError:
            return
        if now[:2] == self.identity[:2] and now != self.identity:
            raise BadInputError(
                f"{self.path} was written into while it was in use: run again when it is at rest, and give a new "
                "version its place by renaming it"
            )


def map_tensors(header: Header) -> dict[str, NDArray[Any]]:
    """All tensors of a file, read-only, over one mapping of it. The mapping ends with the last of the arrays.

    One mapping for all of them: a process may have some 65 000 mappings, a file more tensors than that.

    Returns:
        Arrays of the stored dtypes and shapes, C-contiguous, by name; empty ones where the shape has a zero. Where
        the header's length is no multiple of the item size, which the format allows, they are not aligned.

    Raises:
        BadInputError: the file is no longer the one whose header was read, or cannot be mapped.
        ValueError: values packed below one byte (F4, F6), which have no numpy array.
    """
    dtypes = {name: numpy_dtype_of(entry.dtype) for name, entry in header.entries.items()}
    with open_data(header) as file:
        try:
            # Its length is what was checked: a file that grows meanwhile is not followed.
            mapping = mmap.mmap(file.fileno(), header.file_size, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: cut short since it was opened
            raise BadInputError(
                f"{header.path}: cannot be mapped into memory ({error}): copy it to a local disk, and run again when "
                "it is at rest"
            ) from error
    return {
        name: np.frombuffer(
            mapping, dtypes[name], count=entry.nbytes // dtypes[name].itemsize, offset=header.data_offset + entry.begin
        ).reshape(entry.shape)
        for name, entry in header.entries.items()
    }
