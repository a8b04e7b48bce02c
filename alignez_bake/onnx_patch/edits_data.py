"""New values of a patched graph: into a side file as they are made, or into the graph's own file."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

ENDING: Final = "_edits_data"
"""What is put behind the graph's name, for the side file."""

_ALIGNMENT: Final = 4096  # a page, so that ONNX Runtime can map a tensor where it lies
_INSIDE: Final = 1024  # smaller ones stay in the graph, where shape inference sees them


@dataclass(frozen=True)
class StoredValues:
    """Where the values of one tensor went.

    Attributes:
        dtype: of the array.
        shape: its dimensions.
        values: the array, where they stay in the graph; else None.
        offset: where they begin in the side file, in bytes.
        length: how many bytes they are.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    values: NDArray[Any] | None
    offset: int
    length: int


class EditsData:
    """Takes arrays; large ones go to the side file at once, so that no more than one of them is in memory."""

    def __init__(self, file: BinaryIO | None) -> None:
        """Take the open side file; None: everything stays in the graph."""
        self._file = file

    def store(self, array: NDArray[Any]) -> StoredValues:
        """Keep an array."""
        array = np.ascontiguousarray(array)
        if self._file is None or array.nbytes < _INSIDE:
            return StoredValues(array.dtype, array.shape, array, 0, array.nbytes)
        offset = -(-self._file.tell() // _ALIGNMENT) * _ALIGNMENT
        self._file.seek(offset)
        # As bytes: numpy gives dtypes that are not its own no buffer.
        self._file.write(array.reshape(-1).view(np.uint8).data)
        return StoredValues(array.dtype, array.shape, None, offset, array.nbytes)


@contextmanager
def edits_data(path: Path | None) -> Iterator[EditsData]:
    """A place for new values. A side file that got none goes again.

    Args:
        path: the side file; None: everything stays in the graph.
    """
    if path is None:
        yield EditsData(None)
        return
    with path.open("xb") as file:
        yield EditsData(file)
        size = file.tell()
    if size == 0:
        path.unlink()
