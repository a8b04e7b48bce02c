"""A weight file while it is written: its bytes, and the hashes of what has passed."""

from __future__ import annotations

import errno
import fcntl
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from alignez_bake.file_sharing import cloned, linked
from alignez_bake.integrity.hashing import Algorithm, Hasher, hash_file, new_hasher
from alignez_bake.lowering.delivery import DeliverySums
from alignez_bake.safetensors_io.file_access import BLOCK_BYTES, open_data, read_into
from alignez_bake.streaming.file_hashes import FileHashes
from alignez_bake.streaming.journal import Checkpoint, partial_name
from alignez_bake.streaming.staging import ALIGNMENT, Staging
from alignez_bake.streaming.written import Way, WrittenFile, WrittenTensor

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from alignez_bake.lowering.rounding import Rounding
    from alignez_bake.streaming.file_plan import FilePlan
    from alignez_bake.streaming.resources import Resources
    from alignez_bake.streaming.segments import Block, Segment
    from alignez_bake.streaming.staging import Piece

_OPEN: Final = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


@dataclass
class _Tensor:
    """The edited or new tensor that is passing."""

    name: str
    hash: Hasher
    base_hash: Hasher
    has_base: bool = False
    sums: DeliverySums | None = None
    rounding: Rounding = "nearest"


class OpenFile:
    """A file that is written from its front to its end, under a name that no loader takes for weights.

    Attributes:
        plan: what it holds.
        path: where it will lie.
        partial: where it lies until it is whole.
        first: number of the segment to go on with.
        way: how its bytes come to be there.
        offset: bytes that are there.
    """

    def __init__(
        self,
        plan: FilePlan,
        folder: Path,
        algorithm: Algorithm,
        resources: Resources,
        *,
        link: bool,
        done: Checkpoint | None,
    ) -> None:
        """Begin the file, go on with it from `done`, or share the base's blocks on the disk.

        Raises:
            OSError: it cannot be written.
            BadInputError: the base's file changed.
        """
        self.plan, self.path = plan, folder / plan.name
        self.partial = self.path.with_name(partial_name(plan.name))
        self._algorithm: Algorithm = algorithm
        self._resources, self._staging = resources, Staging(resources.buffers, 0, plan.head)
        self._descriptor: int | None = None
        self._tensors: list[WrittenTensor] = []
        self._tensor: _Tensor | None = None
        self.first, self.offset = 0, 0
        self._hashes = self._new_hashes()
        self.way: Way = "written"
        if plan.is_the_base:
            # There are places to go on from in copies alone.
            self.way = self._shared(link=link) if done is None else "copied"
        if self.is_shared:
            self.offset = len(plan.head)
            return
        self._descriptor = _own_file(self.partial)
        try:
            if done is None or not self._resumed(done):
                self._begin()
            _pass_by_cache(self._descriptor)
        except BaseException:
            self.close()
            raise

    @property
    def is_shared(self) -> bool:
        """Whether its bytes are the base's own, so that nothing is written."""
        return self.way in ("hard-linked", "reflinked")

    def write(self, piece: Piece) -> None:
        """Write a piece of `take` or `flush` to its place; may run beside the hashing of later ones."""
        try:
            if self._descriptor is not None:
                _write_all(self._descriptor, piece.memory[: piece.size].data, piece.offset)
        finally:
            if piece.is_buffer:
                self._resources.buffers.give_back(piece.memory)

    def take(self, block: Block) -> Iterator[Piece]:
        """Hash the next bytes; gives the pieces of the file that are to be written by then."""
        self.offset += len(block.written)
        self._hashes.take(block.written, block.base, () if self._tensor is None else (self._tensor.base_hash,))
        if self._tensor is not None:
            self._tensor.hash.update(block.written.data)
            self._tensor.has_base |= block.base is not None
            if block.sums is not None:
                self._tensor.sums = (self._tensor.sums or DeliverySums()) + block.sums
                if block.rounding == "carry":
                    self._tensor.rounding = "carry"
        if not self.is_shared:
            yield from self._staging.add(block.written)

    def flush(self, *, last: bool = False) -> Iterator[Piece]:
        """What is to be written so that all bytes that were taken are; `last`: no more come, and all are hashed."""
        if last:
            self._resources.base_is_hashed()
        if not self.is_shared:
            yield from self._staging.flush(last=last)

    def begin_segment(self, segment: Segment) -> None:
        """What is taken from now on belongs to a tensor."""
        if segment.noted:
            self._tensor = _Tensor(segment.name, new_hasher(self._algorithm), new_hasher(self._algorithm))

    def end_segment(self) -> None:
        """The tensor is whole."""
        if self._tensor is not None:
            tensor = self._tensor
            self._resources.base_is_hashed()
            base_hash = tensor.base_hash.hexdigest() if tensor.has_base else None
            hashes = tensor.hash.hexdigest(), base_hash
            self._tensors.append(WrittenTensor(tensor.name, *hashes, tensor.sums, tensor.rounding))
            self._tensor = None

    def checkpoint(self, segment: int) -> Checkpoint:
        """The state in front of a segment, to go on from once everything before it is synced."""
        base_hash = self._hashes.base if self.plan.passes_base else None
        return Checkpoint(self.plan.name, segment, self.offset, self._hashes.result, base_hash, tuple(self._tensors))

    def sync(self) -> None:
        """All bytes to the disk."""
        if self._descriptor is not None:
            os.fdatasync(self._descriptor)

    def finish(self) -> WrittenFile:
        """Sync the whole file and give it its name.

        Raises:
            OSError: the disk is full, or cannot be written.
        """
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, self.offset)  # the last piece reaches to a boundary
            os.fsync(self._descriptor)
            self.close()
        self.partial.replace(self.path)
        directory = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        return self._written()

    def close(self) -> None:
        """Let go of the file, whole or not."""
        self._staging.close()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _written(self) -> WrittenFile:
        base_hash = self._hashes.base if self.plan.passes_base else hash_file(self.plan.source.path, self._algorithm)[1]
        return WrittenFile(self.plan.name, self.way, self.offset, self._hashes.result, base_hash, tuple(self._tensors))

    def _new_hashes(self) -> FileHashes:
        return FileHashes(self._algorithm, self.plan.head, self.plan.base_head, self._resources)

    def _shared(self, *, link: bool) -> Way:
        self.partial.unlink(missing_ok=True)
        # What a run left that was killed before it noted the file; and of two names of one file none gives way to the
        # other.
        self.path.unlink(missing_ok=True)
        source = self.plan.source.path.resolve(strict=True)
        if cloned(source, self.partial):
            return "reflinked"
        return "hard-linked" if link and linked(source, self.partial) else "copied"

    def _begin(self) -> None:
        assert self._descriptor is not None
        os.ftruncate(self._descriptor, 0)
        self._hashes, self.offset = self._new_hashes(), len(self.plan.head)

    def _resumed(self, done: Checkpoint) -> bool:
        """Whether what lies there is what was noted; if so, it is gone on with."""
        assert self._descriptor is not None
        if done.offset != self.plan.offset(done.segment) or os.fstat(self._descriptor).st_size < done.offset:
            return False
        self._hashes.part()
        at = len(self.plan.head)
        if os.pread(self._descriptor, at, 0) != self.plan.head:
            return False
        remaining = done.offset - at
        while remaining:
            data = os.pread(self._descriptor, min(BLOCK_BYTES, remaining), at)
            if not data:
                return False
            self._hashes.take_written(data)
            at, remaining = at + len(data), remaining - len(data)
        if self.plan.passes_base:
            self._hash_base(done.segment)
        if self._hashes.result != done.hash or (self.plan.passes_base and self._hashes.base != done.base_hash):
            return False
        os.ftruncate(self._descriptor, done.offset)
        whole = done.offset // ALIGNMENT * ALIGNMENT
        self._staging = Staging(self._resources.buffers, whole, os.pread(self._descriptor, done.offset - whole, whole))
        self.first, self.offset, self._tensors = done.segment, done.offset, list(done.tensors)
        return True

    def _hash_base(self, segments: int) -> None:
        """Hash the base's bytes that passed through the first segments."""
        source = self.plan.source
        ends = [segment.source[1] for segment in self.plan.segments[:segments] if segment.source is not None]
        with open_data(source) as file:
            for begin in range(0, max(ends, default=0), BLOCK_BYTES):
                buffer = bytearray(min(BLOCK_BYTES, max(ends) - begin))
                read_into(file, source, begin, memoryview(buffer))
                self._hashes.take_base(buffer)


def _own_file(path: Path) -> int:
    """A file to write into, open; what lies there is kept, unless it is a file of another name too.

    A killed run with hard links may have left one to the base's file: what is written there is written to the base.
    """
    if os.path.lexists(path) and (path.is_symlink() or not path.is_file() or path.stat().st_nlink > 1):
        path.unlink()
    return os.open(path, _OPEN, 0o666)


def _pass_by_cache(descriptor: int) -> None:
    """Write without the system's cache, where the file system can."""
    if not hasattr(os, "O_DIRECT"):  # not on macOS
        return
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | os.O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise


def _write_all(descriptor: int, data: memoryview, offset: int) -> None:
    """Write at a place, whatever the system takes at once."""
    while data:
        try:
            count = os.pwrite(descriptor, data, offset)
        except OSError as error:
            # A disk with larger blocks, or a file system that says so only now.
            if error.errno != errno.EINVAL or not _through_cache(descriptor):
                raise
            continue
        data, offset = data[count:], offset + count


def _through_cache(descriptor: int) -> bool:
    """Write through the system's cache from now on; False: so it was already."""
    flags, direct = fcntl.fcntl(descriptor, fcntl.F_GETFL), getattr(os, "O_DIRECT", 0)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags & ~direct)
    return bool(flags & direct)
