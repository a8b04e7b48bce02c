"""What all files of a bake share while they are written: threads that compute, and buffers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignez_bake.integrity import leaves
from alignez_bake.streaming.background import WRITERS
from alignez_bake.streaming.buffers import Buffers

if TYPE_CHECKING:
    from alignez_bake.integrity.hashing import Algorithm
    from alignez_bake.streaming.background import Background


class Resources:
    """What the files of one bake share.

    Attributes:
        algorithm: of the hashes.
        background: writes.
        buffers: for a part of a file each: two for each worker, and one for each thread that writes.
    """

    def __init__(self, algorithm: Algorithm, background: Background, workers: int) -> None:
        """Nothing is taken before it is used.

        Args:
            algorithm: of the hashes.
            background: writes.
            workers: threads that compute at the same time.
        """
        self.algorithm: Algorithm = algorithm
        self.background = background
        self.buffers = Buffers(2 * workers + WRITERS, leaves.LEAF_BYTES)
