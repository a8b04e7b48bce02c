"""Bytes on their way to the disk, in aligned pieces, so that they may pass by the system's cache.

Small blocks are gathered in buffers. Of a large block whose memory begins as its place in the file does, counted from a
multiple of `ALIGNMENT`, all but its ends goes to the disk as it is.
"""

from __future__ import annotations

import mmap
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from alignez_bake.safetensors_io.dtypes import Array

ALIGNMENT: Final = 4096
"""Of places, lengths and memory of direct writes: at least the logical block of any disk in use."""
_WORTH_A_WRITE: Final = 256 * 1024


class Piece(NamedTuple):
    """A part of a file that is ready to be written.

    Attributes:
        memory: that holds it, from its front.
        size: bytes of it, a multiple of `ALIGNMENT`; those behind the file's end are zeros.
        offset: where in the file it begins, likewise.
        is_buffer: whether the memory is a buffer, which is given back once it is written.
    """

    memory: Array
    size: int
    offset: int
    is_buffer: bool = True


def empty_at(size: int, offset: int) -> Array:
    """Memory for bytes that belong at a place in a file, so that they can be written there directly."""
    block = np.empty(size + ALIGNMENT, np.uint8)
    begin = (offset - block.ctypes.data) % ALIGNMENT
    return block[begin : begin + size]


class Buffers:
    """The few buffers that all files of a bake share: who finds none waits until a piece is written."""

    def __init__(self, count: int, size: int) -> None:
        """Map them; their memory is taken as they are filled.

        Args:
            count: of buffers.
            size: of each in bytes, a multiple of `ALIGNMENT`.
        """
        self._free: SimpleQueue[Array] = SimpleQueue()
        for _ in range(count):
            self._free.put(np.frombuffer(mmap.mmap(-1, size), np.uint8))  # begins at a page

    def take(self) -> Array:
        """A buffer, once one is free."""
        return self._free.get()

    def give_back(self, buffer: Array) -> None:
        """It may be filled anew."""
        self._free.put(buffer)


class Staging:
    """The bytes at the end of one file that are not on their way yet."""

    def __init__(self, buffers: Buffers, offset: int, first: bytes) -> None:
        """Begin a file, or go on with it; no buffer is taken before bytes come.

        Args:
            buffers: to gather bytes in.
            offset: of the file, a multiple of `ALIGNMENT`, in front of which all is written.
            first: the bytes there.
        """
        self._buffers, self._offset, self._fill = buffers, offset, 0
        self._first = np.frombuffer(first, np.uint8)
        self._buffer: Array | None = None

    def add(self, data: Array) -> Iterator[Piece]:
        """Take the next bytes of the file; gives the pieces that are full by then, each before the next is begun."""
        first, self._first = self._first, self._first[:0]
        yield from self._gathered(first)
        position = self._offset + self._fill
        begin = -position % ALIGNMENT
        whole = (len(data) - begin) // ALIGNMENT * ALIGNMENT
        if whole >= _WORTH_A_WRITE and (data.ctypes.data - position) % ALIGNMENT == 0:
            yield from self._gathered(data[:begin])
            if self._fill:
                yield self._piece(self._fill)
            yield Piece(data[begin : begin + whole], whole, self._offset, is_buffer=False)
            self._offset += whole
            data = data[begin + whole :]
        yield from self._gathered(data)

    def _gathered(self, data: Array) -> Iterator[Piece]:
        while len(data):
            count = self._append(data)
            data = data[count:]
            assert self._buffer is not None
            if self._fill == len(self._buffer):
                yield self._piece(self._fill)

    def flush(self, *, last: bool) -> Iterator[Piece]:
        """What is gathered, up to the next boundary; bytes that come later are written there once more.

        Args:
            last: nothing comes later.
        """
        yield from self.add(self._first[:0])
        if self._buffer is None:
            return
        whole = self._fill // ALIGNMENT * ALIGNMENT
        padded = -(-self._fill // ALIGNMENT) * ALIGNMENT
        self._buffer[self._fill : padded] = 0
        rest = self._buffer[whole : self._fill].copy()
        piece = self._piece(padded)
        self._offset -= padded - whole
        yield piece
        if not last and len(rest):
            self._append(rest)

    def close(self) -> None:
        """Let go of what is gathered."""
        if self._buffer is not None:
            self._buffers.give_back(self._buffer)
            self._buffer = None

    def _append(self, data: Array) -> int:
        """Gather as much as there is room for."""
        if self._buffer is None:
            self._buffer = self._buffers.take()
        count = min(len(data), len(self._buffer) - self._fill)
        self._buffer[self._fill : self._fill + count] = data[:count]
        self._fill += count
        return count

    def _piece(self, count: int) -> Piece:
        assert self._buffer is not None
        buffer, self._buffer, self._fill = self._buffer, None, 0
        self._offset += count
        return Piece(buffer, count, self._offset - count)
