"""Hashes of files and tensors that are made part by part, by whichever thread has a part at hand.

A `Marker` makes the mark of one part, a `Tally` makes the hash of all from their marks. Leaves can be marked in any
order (`integrity/leaves.py`); where a hash is of all bytes in order, a thread waits until it is its part's turn.
"""

from __future__ import annotations

from threading import Condition
from typing import TYPE_CHECKING, Protocol

from alignez_bake.integrity import leaves
from alignez_bake.integrity.hashing import new_hasher
from alignez_bake.integrity.leaves import leaf_hash, root_hash

if TYPE_CHECKING:
    from collections.abc import Hashable

    from alignez_bake.integrity.hashing import Algorithm, Hasher
    from alignez_bake.safetensors_io.dtypes import Array

Mark = bytes | str
"""The hash of a leaf, or that of all bytes up to the end of a part."""


class Tally(Protocol):
    """The hash of parts that are added in order."""

    def add(self, mark: Mark, size: int) -> None:
        """Add the next part.

        Args:
            mark: of it.
            size: in bytes.
        """
        ...

    def hexdigest(self, parts: int | None = None) -> str:
        """The hash of the first parts, all unless told; all but the last one are whole leaves where it is told."""
        ...


class Marker(Protocol):
    """Makes marks."""

    def mark(self, stream: Hashable, turn: int, data: Array, *, known: Mark | None = None) -> Mark:
        """The mark of a part.

        Args:
            stream: what it is a part of.
            turn: its number there; the first is 0.
            data: its bytes.
            known: of the same bytes as a leaf of another stream.
        """
        ...

    def tally(self) -> Tally:
        """A hash of nothing yet."""
        ...

    def abort(self) -> None:
        """A part will never be marked: nobody waits for its turn."""
        ...


def new_marker(algorithm: Algorithm) -> Marker:
    """What makes the marks of one file of a result and of its base."""
    return _Leaves() if algorithm == "blake3-leaves" else _InOrder(algorithm)


class _Leaves:
    def mark(self, stream: Hashable, turn: int, data: Array, *, known: Mark | None = None) -> Mark:
        del stream, turn
        return leaf_hash(data.data) if known is None else known

    def tally(self) -> Tally:
        return _LeafTally()

    def abort(self) -> None:
        """Nobody waits."""


class _LeafTally:
    def __init__(self) -> None:
        self._leaves, self._size = bytearray(), 0

    def add(self, mark: Mark, size: int) -> None:
        assert isinstance(mark, bytes)
        self._leaves += mark
        self._size += size

    def hexdigest(self, parts: int | None = None) -> str:
        if parts is None:
            return root_hash(self._size, self._leaves)
        return root_hash(parts * leaves.LEAF_BYTES, self._leaves[: parts * leaves.HASH_BYTES])


class _InOrder:
    def __init__(self, algorithm: Algorithm) -> None:
        self._algorithm: Algorithm = algorithm
        self._state = Condition()
        self._streams: dict[Hashable, tuple[int, Hasher]] = {}
        self._aborted = False

    def mark(self, stream: Hashable, turn: int, data: Array, *, known: Mark | None = None) -> Mark:
        del known
        with self._state:
            if stream not in self._streams:
                self._streams[stream] = 0, new_hasher(self._algorithm)
            self._state.wait_for(lambda: self._aborted or self._streams[stream][0] == turn)
            if self._aborted:
                raise RuntimeError("a part before this one failed")  # which is the error that is shown
            _, hasher = self._streams[stream]
        hasher.update(data.data)
        mark = hasher.hexdigest()
        with self._state:
            self._streams[stream] = turn + 1, hasher
            self._state.notify_all()
        return mark

    def tally(self) -> Tally:
        return _OrderedTally(new_hasher(self._algorithm).hexdigest())

    def abort(self) -> None:
        with self._state:
            self._aborted = True
            self._state.notify_all()


class _OrderedTally:
    def __init__(self, of_nothing: str) -> None:
        self._marks = [of_nothing]

    def add(self, mark: Mark, size: int) -> None:
        del size
        assert isinstance(mark, str)
        self._marks.append(mark)

    def hexdigest(self, parts: int | None = None) -> str:
        return self._marks[-1 if parts is None else parts]
