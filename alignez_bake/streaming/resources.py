"""What all files of a bake share while they are written: buffers, and a thread that hashes the base."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, Self

from alignez_bake.streaming.staging import Buffers

if TYPE_CHECKING:
    from alignez_bake.integrity.hashing import Hasher
    from alignez_bake.safetensors_io.dtypes import Array

_MOST_UNHASHED: Final = 4


class SideHashing:
    """Hashes blocks in the order in which they are given, in a thread of its own.

    Hashing the base's file and the result's in one thread would take as long as a whole bake on two cores.
    """

    def __init__(self) -> None:
        """Start nothing yet."""
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="hash")
        self._updates: deque[Future[None]] = deque()

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for what runs."""
        self._pool.shutdown(cancel_futures=True)

    def update(self, hashers: tuple[Hasher, ...], data: Array) -> None:
        """Let hashers take the next bytes; waits only while several blocks before these are not hashed."""
        while len(self._updates) >= _MOST_UNHASHED:
            self._updates.popleft().result()
        self._updates.append(self._pool.submit(_update, hashers, data))

    def settle(self) -> None:
        """Wait until the hashers have taken all that they were given."""
        while self._updates:
            self._updates.popleft().result()


class Resources:
    """What the files of one bake share.

    Attributes:
        buffers: for bytes on their way to the disk.
        hashing: of the base's bytes.
    """

    def __init__(self) -> None:
        """Nothing is taken before it is used."""
        self.buffers, self.hashing = Buffers(), SideHashing()

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """End the thread."""
        self.hashing.__exit__(*exception)


def _update(hashers: tuple[Hasher, ...], data: Array) -> None:
    for hasher in hashers:
        hasher.update(data.data)
