"""What all files of a bake share while they are written: threads that compute and hash, and buffers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from alignez_bake.streaming.crew import Crew
from alignez_bake.streaming.staging import Buffers

if TYPE_CHECKING:
    from alignez_bake.integrity.hashing import Hasher
    from alignez_bake.safetensors_io.dtypes import Array
    from alignez_bake.streaming.segments import Block
    from alignez_bake.streaming.step import Step

_BUFFER_BYTES: Final = 2 * 1024 * 1024
_BUFFERS: Final = 8


class Resources:
    """What the files of one bake share.

    Attributes:
        crew: as many threads as may compute at the same time.
        buffers: for bytes on their way to the disk.
    """

    def __init__(self, workers: int) -> None:
        """Nothing is taken before it is used.

        Args:
            workers: threads that may compute at the same time.
        """
        self.crew: Crew[Step, Block | None] = Crew(workers, ahead=2 * workers + 2)
        self.buffers = Buffers(_BUFFERS, _BUFFER_BYTES)

    def hash_base(self, hashers: tuple[Hasher, ...], data: Array) -> None:
        """Let hashers take the next bytes of the base, beside what goes on."""

        def update() -> None:
            for hasher in hashers:
                hasher.update(data.data)

        self.crew.beside(update)

    def base_is_hashed(self) -> None:
        """Wait until the hashers have taken all that they were given."""
        self.crew.settle()
