"""Hashes of files and of tensors, streamed: memory does not grow with the size.

Three algorithms: `blake3-leaves` (`integrity/leaves.py`), which a bake makes side by side and takes by default; and
`blake3` and `sha256` of all bytes in order, as `b3sum` and `sha256sum` print them.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Final, Literal, Protocol, get_args

from alignez_bake.errors import BadInputError
from alignez_bake.integrity.leaves import LeafHasher
from alignez_bake.safetensors_io.file_access import BLOCK_BYTES, iter_range

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from alignez_bake.safetensors_io.header import Header, TensorEntry

Algorithm = Literal["blake3-leaves", "blake3", "sha256"]
ALGORITHMS: Final[tuple[Algorithm, ...]] = get_args(Algorithm)
DEFAULT: Final[Algorithm] = "blake3-leaves"
HEX_DIGITS: Final = 64
"""Length of a hash as text: all algorithms give 32 bytes."""


def checked_algorithm(name: str) -> Algorithm:
    """The algorithm of a name.

    Raises:
        BadInputError: there is none.
    """
    for algorithm in ALGORITHMS:
        if name == algorithm:
            return algorithm
    raise BadInputError(f"hash algorithm {name!r} is unknown: use {', '.join(ALGORITHMS)}")


class Hasher(Protocol):
    """A hash in the making."""

    def update(self, data: bytes | bytearray | memoryview, /) -> object:
        """Take the next bytes."""
        ...

    def hexdigest(self) -> str:
        """The hash of all bytes so far, 64 lower-case hexadecimal digits."""
        ...

    def copy(self) -> Hasher:
        """One that has seen the same bytes, and goes its own way."""
        ...


def new_hasher(algorithm: Algorithm = DEFAULT, *, offset: int = 0) -> Hasher:
    """A hasher that has seen nothing yet.

    Args:
        algorithm: the one that a bake makes side by side, or one that other tools have too.
        offset: where in a file the first byte lies, which leaves are cut by.
    """
    if algorithm == "blake3-leaves":
        return LeafHasher(offset)
    if algorithm == "sha256":
        return hashlib.sha256()
    # Not with this module: commands that hash nothing do not pay for it.
    from blake3 import blake3  # noqa: PLC0415

    return blake3()


def hash_file(path: Path, algorithm: Algorithm = DEFAULT) -> tuple[int, str]:
    """Size in bytes and hash of a file.

    Raises:
        BadInputError: it cannot be read.
    """
    hasher, size = new_hasher(algorithm), 0
    for block in _blocks(path):
        hasher.update(block)
        size += len(block)
    return size, hasher.hexdigest()


def hash_with_tensors(
    header: Header, names: Collection[str], algorithm: Algorithm = DEFAULT
) -> tuple[int, str, dict[str, str]]:
    """Size and hash of a safetensors file, and hashes of some of its tensors' bytes, from one reading.

    Args:
        header: of the file.
        names: tensors to hash; those that are not in the file are passed over.
        algorithm: of all hashes.

    Raises:
        BadInputError: the file changed or cannot be read.
    """
    of_file = new_hasher(algorithm)
    of_file.update(len(header.header_bytes).to_bytes(8, "little") + header.header_bytes)
    tensors: dict[str, str] = {}
    for entry in header.entries.values():
        of_tensor = _tensor_hasher(header, entry, algorithm) if entry.name in names else None
        for block in iter_range(header, entry.begin, entry.end):
            of_file.update(block)
            if of_tensor is not None:
                of_tensor.update(block)
        if of_tensor is not None:
            tensors[entry.name] = of_tensor.hexdigest()
    return header.file_size, of_file.hexdigest(), tensors


def hash_tensor(header: Header, entry: TensorEntry, algorithm: Algorithm = DEFAULT) -> str:
    """Hash of one tensor's bytes as they are stored.

    Raises:
        BadInputError: the file changed or cannot be read.
    """
    hasher = _tensor_hasher(header, entry, algorithm)
    for block in iter_range(header, entry.begin, entry.end):
        hasher.update(block)
    return hasher.hexdigest()


def _tensor_hasher(header: Header, entry: TensorEntry, algorithm: Algorithm) -> Hasher:
    return new_hasher(algorithm, offset=header.data_offset + entry.begin)


def _blocks(path: Path) -> Iterator[memoryview]:
    """A file's bytes in order; each block is overwritten by the next."""
    buffer = memoryview(bytearray(min(BLOCK_BYTES, max(1, _size(path)))))
    try:
        with path.open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            while count := file.readinto(buffer):
                yield buffer[:count]
    except OSError as error:
        raise _unreadable(path, error) from error


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> BadInputError:
    return BadInputError(f"{path}: cannot be read ({error.strerror or error}): check the path and its permissions")
