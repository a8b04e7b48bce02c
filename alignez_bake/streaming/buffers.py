"""Memory in which parts of files are read, made and written: a few buffers that are used over and over."""

from __future__ import annotations

import mmap
from queue import LifoQueue
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from alignez_bake.safetensors_io.dtypes import Array

ALIGNMENT: Final = 4096
"""Of places, lengths and memory of direct writes: at least the logical block of any disk in use."""


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
        for _ in range(count):
            memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            self._free.put(np.frombuffer(memory, np.uint8))  # begins at a page

    def take(self) -> Array:
        """A buffer, once one is free."""
        return self._free.get()

    def give_back(self, buffer: Array) -> None:
        """It may be filled anew."""
        self._free.put(buffer)
