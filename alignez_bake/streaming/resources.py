"""What all files of a bake share while they are written: threads that compute and hash, and buffers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, Self

from alignez_bake.streaming.lane import Lane
from alignez_bake.streaming.staging import Buffers

if TYPE_CHECKING:
    from alignez_bake.integrity.hashing import Hasher
    from alignez_bake.safetensors_io.dtypes import Array

_MOST_WAITING: Final = 4
_BUFFER_BYTES: Final = 4 * 1024 * 1024
_BUFFERS: Final = 4


class Resources:
    """What the files of one bake share.

    Attributes:
        pool: as many threads as may compute at the same time.
        taking: blocks are taken here, in order.
        buffers: for bytes on their way to the disk.
    """

    def __init__(self, workers: int) -> None:
        """Nothing is taken before it is used.

        Args:
            workers: threads that may compute at the same time.
        """
        self.pool = ThreadPoolExecutor(workers, thread_name_prefix="stream")
        self.taking = Lane(self.pool, _MOST_WAITING)
        self._hashing = Lane(self.pool, _MOST_WAITING)
        self.buffers = Buffers(_BUFFERS, _BUFFER_BYTES)

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End all threads; what waits never runs."""
        self.taking.abandon()
        self._hashing.abandon()
        self.pool.shutdown(cancel_futures=True)

    def hash_base(self, hashers: tuple[Hasher, ...], data: Array) -> None:
        """Let hashers take the next bytes of the base, beside what goes on."""

        def update() -> None:
            for hasher in hashers:
                hasher.update(data.data)

        self._hashing.submit(update, inside=True)

    def base_is_hashed(self) -> None:
        """Wait until the hashers have taken all that they were given."""
        self._hashing.settle()
