"""Memory in which parts of files are read, made and written: a few buffers that are used over and over."""

from __future__ import annotations

import mmap
from contextlib import suppress
from queue import LifoQueue
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from alignez_bake.safetensors_io.dtypes import Array

ALIGNMENT: Final = 4096
"""Of places, lengths and memory of direct writes: at least the logical block of any disk in use."""
_HUGE_PAGE: Final = 2 * 1024 * 1024


class Buffers:
    """The buffers that all files of a bake share: who finds none waits until one is given back."""

    def __init__(self, count: int, size: int) -> None:
        """Map them; their memory is taken as they are filled.

        Args:
            count: of buffers.
            size: of each in bytes, a multiple of `ALIGNMENT`.
        """
        # What was used last may still be in a core's cache.
        self._free: LifoQueue[Array] = LifoQueue()
        memory = mmap.mmap(-1, count * size + _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        # The system looks up and pins each page of what it writes past its cache: 2 pages instead of 1024.
        if hasattr(mmap, "MADV_HUGEPAGE"):  # not on macOS
            with suppress(OSError):  # nor where the kernel was built without
                memory.madvise(mmap.MADV_HUGEPAGE)
        whole = np.frombuffer(memory, np.uint8)
        begin = -whole.ctypes.data % _HUGE_PAGE
        for first in range(begin, begin + count * size, size):
            self._free.put(whole[first : first + size])

    def take(self) -> Array:
        """A buffer, once one is free."""
        return self._free.get()

    def give_back(self, buffer: Array) -> None:
        """It may be filled anew."""
        self._free.put(buffer)
