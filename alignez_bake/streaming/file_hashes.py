"""Hashes of a file that is written and of the base's file, made as their bytes pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignez_bake.integrity.hashing import new_hasher

if TYPE_CHECKING:
    from alignez_bake.integrity.hashing import Algorithm, Hasher
    from alignez_bake.safetensors_io.dtypes import Array
    from alignez_bake.streaming.resources import Resources


class FileHashes:
    """Two hashes, which are one as long as both files hold the same bytes: then nothing is hashed twice.

    A file without an edit is hashed once, and so is what lies in front of the first edit.
    """

    def __init__(self, algorithm: Algorithm, head: bytes, base_head: bytes, resources: Resources) -> None:
        """Begin with the first bytes of both.

        Args:
            algorithm: of both.
            head: of the file that is written.
            base_head: of the base's.
            resources: where the base's bytes are hashed.
        """
        self._resources = resources
        self._result = new_hasher(algorithm)
        self._result.update(head)
        self._base: Hasher | None = None
        if base_head != head:
            self._base = new_hasher(algorithm)
            self._base.update(base_head)

    def take(self, written: Array, base: Array | None, also_of_base: tuple[Hasher, ...] = ()) -> None:
        """Take the next bytes.

        Args:
            written: of the file.
            base: of the base's; the same object as `written` where they are the same; None: none pass.
            also_of_base: hashers that take the base's bytes too.
        """
        if base is not written:
            self.part()
        if base is not None and (hashers := (*self._of_base, *also_of_base)):
            self._resources.hash_base(hashers, base)
        self._result.update(written.data)

    def part(self) -> None:
        """From here on the two files may differ."""
        if self._base is None:
            self._base = self._result.copy()

    def take_written(self, data: bytes) -> None:
        """Take bytes of the file alone; the two have parted."""
        self._result.update(data)

    def take_base(self, data: bytes | bytearray) -> None:
        """Take bytes of the base's file alone; the two have parted."""
        for hasher in self._of_base:
            hasher.update(data)

    @property
    def result(self) -> str:
        """Of the file's bytes so far, hexadecimal."""
        return self._result.hexdigest()

    @property
    def base(self) -> str:
        """Of the base's bytes so far, hexadecimal; waits until they are hashed."""
        self._resources.base_is_hashed()
        return (self._result if self._base is None else self._base).hexdigest()

    @property
    def _of_base(self) -> tuple[Hasher, ...]:
        return () if self._base is None else (self._base,)
