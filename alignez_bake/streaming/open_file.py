"""A weight file while it is written: its bytes on the disk, and what is known of those that were made."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from alignez_bake.file_sharing import cloned, linked
from alignez_bake.integrity import leaves
from alignez_bake.streaming.buffers import ALIGNMENT
from alignez_bake.streaming.journal import Checkpoint, partial_name
from alignez_bake.streaming.leaf_maker import LeafMaker
from alignez_bake.streaming.marks import new_marker
from alignez_bake.streaming.seen import FileTally, SeenLeaf
from alignez_bake.streaming.segments import read_bytes
from alignez_bake.streaming.target_file import own_file, pass_by_cache, reserve, write_all
from alignez_bake.streaming.written import Way, WrittenFile, WrittenTensor

if TYPE_CHECKING:
    from pathlib import Path

    from alignez_bake.safetensors_io.dtypes import Array
    from alignez_bake.streaming.file_plan import FilePlan
    from alignez_bake.streaming.resources import Resources


class OpenFile:
    """A file whose leaves are written as they are made, under a name that no loader takes for weights.

    Attributes:
        plan: what it holds.
        path: where it will lie.
        partial: where it lies until it is whole.
        way: how its bytes come to be there.
        first: number of the leaf to go on with.
        maker: makes its leaves.
    """

    def __init__(
        self, plan: FilePlan, folder: Path, resources: Resources, *, link: bool, done: Checkpoint | None
    ) -> None:
        """Begin the file, go on with it from `done`, or share the base's blocks on the disk.

        Raises:
            OSError: it cannot be written.
            BadInputError: the base's file changed.
        """
        self.plan, self.path = plan, folder / plan.name
        self.partial = self.path.with_name(partial_name(plan.name))
        self._resources = resources
        self._descriptor: int | None = None
        # The next leaf to make, the first tensor that is not whole, bytes that were made, leaves in front of a place.
        self.first = self._segment = self._made = self._safe = 0
        self._begin()
        self.way: Way = "written"
        if plan.is_the_base:
            # There are places to go on from in copies alone.
            self.way = self._shared(link=link) if done is None else "copied"
        if self.is_shared:
            return
        self.maker.write = self._write
        self._descriptor = own_file(self.partial)
        try:
            if done is None or not self._resumed(done):
                self._begin()
                self.maker.write = self._write
                os.ftruncate(self._descriptor, 0)
            reserve(self._descriptor, plan.size)
            pass_by_cache(self._descriptor)
        except BaseException:
            self.close()
            raise

    @property
    def is_shared(self) -> bool:
        """Whether its bytes are the base's own, so that nothing is written."""
        return self.way in ("hard-linked", "reflinked")

    @property
    def leaves(self) -> range:
        """Numbers of the leaves that are to be made."""
        return range(self.first, leaves.leaf_count(self.plan.size))

    @property
    def base_leaves(self) -> range:
        """Numbers of those of the base's file that are not seen with these."""
        return range(0 if self.plan.is_in_place else leaves.leaf_count(self.plan.source.file_size))

    def take(self, leaf: SeenLeaf) -> None:
        """Note a leaf; they come in their order, those of the base's file last."""
        self._tally.add(leaf)
        self._made += 0 if leaf.mark is None else leaf.size
        segments, offsets = self.plan.segments, self.plan.offsets
        while self._segment < len(segments) and offsets[self._segment + 1] <= self._made:
            if segments[self._segment].noted:
                tensor = self._tally.tensor(self._segment)
                self._tensors[self._segment] = tensor.written(segments[self._segment].name)
            self._segment += 1

    def checkpoint(self) -> Checkpoint | None:
        """What was taken, to go on from once all of it is synced; None where there is no new place.

        A place is in front of a tensor, so that no half-made sum has to be kept. A run that goes on begins with the
        leaf that the place lies in, and makes anew what of it is in front of the place.
        """
        offset = self.plan.offsets[self._segment]
        whole = offset // leaves.LEAF_BYTES
        if whole <= self._safe:
            return None
        self._safe = whole
        base_hash = None
        if self.plan.is_in_place and not self.plan.is_the_base:
            base_hash = self._tally.base_hash.hexdigest(whole)
        tensors = tuple(tensor for number, tensor in self._tensors.items() if number < self._segment)
        return Checkpoint(self.plan.name, self._segment, offset, self._tally.hash.hexdigest(whole), base_hash, tensors)

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
            os.ftruncate(self._descriptor, self.plan.size)  # what was written last reaches to a boundary
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
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
            # What writes here is this file's: while each held the other, the buffers of all files outlived the stream.
            self.maker.write = None

    def _write(self, buffer: Array, size: int, offset: int) -> None:
        """Write a buffer to its place; beside others."""
        try:
            padded = -(-size // ALIGNMENT) * ALIGNMENT
            buffer[size:padded] = 0
            if self._descriptor is not None:
                write_all(self._descriptor, buffer[:padded].data, offset)
        finally:
            self._resources.buffers.give_back(buffer)

    def _written(self) -> WrittenFile:
        tensors = []
        for number, tensor in self._tensors.items():
            seen = self._tally.tensors.get(number)
            apart = not self.plan.is_in_place and seen is not None and seen.has_base
            tensors.append(replace(tensor, base_hash=seen.base_hash.hexdigest()) if seen and apart else tensor)
        found = self._tally.hash.hexdigest()
        base_hash = found if self.plan.is_the_base else self._tally.base_hash.hexdigest()
        return WrittenFile(self.plan.name, self.way, self.plan.size, found, base_hash, tuple(tensors))

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
        """Nothing was made yet."""
        marker = new_marker(self._resources.algorithm)
        self._tally = FileTally(marker)
        self.maker = LeafMaker(self.plan, self._resources, marker, None)
        self._tensors: dict[int, WrittenTensor] = {}
        self.first = self._segment = self._made = self._safe = 0

    def _resumed(self, done: Checkpoint) -> bool:
        """Whether what lies there is what was noted; if so, it is gone on with."""
        assert self._descriptor is not None
        whole = done.offset // leaves.LEAF_BYTES
        size = whole * leaves.LEAF_BYTES
        if done.offset != self.plan.offset(done.segment) or os.fstat(self._descriptor).st_size < size:
            return False
        head = self.plan.head[:size]
        if os.pread(self._descriptor, len(head), 0) != head:
            return False
        buffer = np.empty(leaves.LEAF_BYTES, np.uint8)
        for number in range(whole):
            if not _read_all(self._descriptor, buffer.data, number * leaves.LEAF_BYTES):
                return False
            mark, base_mark = self.maker.marker.mark("file", number, buffer), None
            if self.plan.is_in_place and not self.plan.is_the_base:
                read_bytes(self.plan.source, number * leaves.LEAF_BYTES - self.plan.source.data_offset, buffer)
                base_mark = self.maker.marker.mark("base", number, buffer)
            self._tally.add(SeenLeaf(leaves.LEAF_BYTES, mark, base_mark, ()))
        noted = [number for number, segment in enumerate(self.plan.segments[: done.segment]) if segment.noted]
        if [tensor.name for tensor in done.tensors] != [self.plan.segments[number].name for number in noted]:
            return False
        base_hash = self._tally.base_hash.hexdigest() if done.base_hash is not None else None
        if self._tally.hash.hexdigest() != done.hash or base_hash != done.base_hash:
            return False
        os.ftruncate(self._descriptor, size)
        self._tensors = dict(zip(noted, done.tensors, strict=True))
        self.first, self._segment, self._made, self._safe = whole, done.segment, size, whole
        self.maker.first_segment = done.segment
        return True


def _read_all(descriptor: int, buffer: memoryview, offset: int) -> bool:
    """Fill a buffer from a place; False: the file ends before."""
    while buffer:
        count = os.preadv(descriptor, [buffer], offset)
        if not count:
            return False
        buffer, offset = buffer[count:], offset + count
    return True
