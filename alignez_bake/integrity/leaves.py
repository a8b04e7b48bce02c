"""`blake3-leaves`: a hash whose parts can be made in any order, by any number of threads.

A file is cut at every multiple of 4 MiB (4 194 304 bytes) of its offsets. The parts are its leaves, the last of which
may be shorter; an empty file has none. With size(n) = n as 8 bytes, little-endian,

    hash of a leaf  = BLAKE3(bytes of the leaf)                                                      32 bytes
    hash of a file  = BLAKE3 in key derivation mode, with the context `CONTEXT`, of
                      size(bytes of the file), then the hashes of its leaves in order

A tensor is cut where its file is: its leaves are its bytes between two such multiples, so all but the first and the
last are leaves of the file as well, and need no hash of their own. Its hash is made of their hashes and of its number
of bytes in the same way, and depends on where in the file it lies.

Two different inputs with one hash would be a collision of BLAKE3: the hashes of leaves are in order and of full length,
and leaves of other bytes have other hashes. Key derivation mode is another function than the plain one, so a file that
holds the hashes of another one's leaves has not that one's hash.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

LEAF_BYTES: Final = 4 * 1024 * 1024
CONTEXT: Final = "alignez-bake 2026-11-29 blake3-leaves"
HASH_BYTES: Final = 32
_SIZE_BYTES: Final = 8


def leaf_hash(data: bytes | bytearray | memoryview) -> bytes:
    """The 32 bytes of a leaf's hash."""
    # Not with this module: commands that hash nothing do not pay for it.
    from blake3 import blake3  # noqa: PLC0415

    return blake3(data).digest()


def root_hash(size: int, leaves: bytes | bytearray) -> str:
    """The hash of a file or tensor.

    Args:
        size: in bytes.
        leaves: the hashes of its leaves, one behind the other.

    Returns:
        64 lower-case hexadecimal digits.
    """
    from blake3 import blake3  # noqa: PLC0415

    root = blake3(derive_key_context=CONTEXT)
    root.update(size.to_bytes(_SIZE_BYTES, "little"))
    root.update(bytes(leaves))
    return root.hexdigest()


def leaf_range(number: int, size: int) -> tuple[int, int]:
    """The bytes [begin, end) of a leaf of a file of `size` bytes."""
    return number * LEAF_BYTES, min((number + 1) * LEAF_BYTES, size)


def leaf_count(size: int) -> int:
    """Number of leaves of a file of `size` bytes."""
    return -(-size // LEAF_BYTES)


class LeafHasher:
    """The hash of bytes that come one behind the other."""

    def __init__(self, offset: int = 0) -> None:
        """Nothing was seen yet.

        Args:
            offset: where in the file the first byte lies.
        """
        self._offset, self._size = offset, 0
        self._leaves = bytearray()
        self._leaf: Any = None  # a hasher of blake3, which is not typed

    def update(self, data: bytes | bytearray | memoryview, /) -> None:
        """Take the next bytes."""
        for part in self._cut(memoryview(data).cast("B")):
            if self._leaf is None:
                self._leaf = _plain()
            self._leaf.update(part)
            self._size += len(part)
            if (self._offset + self._size) % LEAF_BYTES == 0:
                self._leaves += self._leaf.digest()
                self._leaf = None

    def hexdigest(self) -> str:
        """The hash of all bytes so far."""
        return root_hash(self._size, self._leaves if self._leaf is None else self._leaves + self._leaf.digest())

    def copy(self) -> LeafHasher:
        """One that has seen the same bytes, and goes its own way."""
        other = LeafHasher(self._offset)
        other._size, other._leaves = self._size, bytearray(self._leaves)
        other._leaf = None if self._leaf is None else self._leaf.copy()
        return other

    def _cut(self, data: memoryview) -> Iterator[memoryview]:
        while data:
            room = LEAF_BYTES - (self._offset + self._size) % LEAF_BYTES
            yield data[:room]
            data = data[room:]


def _plain() -> Any:  # noqa: ANN401  # a hasher of blake3, which is not typed
    from blake3 import blake3  # noqa: PLC0415

    return blake3()
