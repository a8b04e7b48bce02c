"""The leaves of a weight file, each made by itself: read, changed, hashed, and written while it is in a cache."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np

from alignez_bake.integrity import leaves
from alignez_bake.streaming.seen import SeenLeaf, SeenPart
from alignez_bake.streaming.segments import read_bytes

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from alignez_bake.safetensors_io.dtypes import Array
    from alignez_bake.streaming.file_plan import FilePlan
    from alignez_bake.streaming.marks import Mark, Marker
    from alignez_bake.streaming.resources import Resources
    from alignez_bake.streaming.segments import Made, Preparation

Prepared = dict[int, dict[int, "Preparation"]]
"""By number of the segment and of the preparation."""


@dataclass
class LeafMaker:
    """Makes the leaves of one file, any number of them side by side.

    Attributes:
        plan: what the file holds.
        resources: buffers, and what writes.
        marker: hashes.
        write: takes a buffer, the bytes in it that count, and their place in the file; gives the buffer back. None:
            the file is the base's, and nothing is written.
        first_segment: tensors in front of it were noted by an earlier run.
    """

    plan: FilePlan
    resources: Resources
    marker: Marker
    write: Callable[[Array, int, int], None] | None
    first_segment: int = 0
    _prepared: Prepared = field(default_factory=dict)

    def job(self, number: int) -> tuple[list[Callable[[], None]], Callable[[], SeenLeaf]]:
        """What is to be prepared for a leaf, beside what earlier ones had prepared, and what makes it.

        Leaves are asked for in their order; what is no longer needed is let go of.
        """
        prepared: Prepared = {}
        new = []
        for segment, begin, end in self.plan.parts(*self._range(number)):
            for index in self.plan.segments[segment].preparations(begin, end):
                known = self._prepared.get(segment, {}).get(index)
                if known is None:
                    known = self.plan.segments[segment].preparation(index)
                    new.append(known.prepare)
                prepared.setdefault(segment, {})[index] = known
        self._prepared = prepared
        return new, partial(self._guarded, partial(self._make, number, prepared))

    def base_job(self, number: int) -> Callable[[], SeenLeaf]:
        """What hashes a leaf of the base's file, where that is not done with the result's."""
        return partial(self._guarded, partial(self._base_leaf, number))

    def _guarded(self, make: Callable[[list[Array]], SeenLeaf]) -> SeenLeaf:
        """Whatever happens, nobody waits for this leaf's turn or buffers."""
        held: list[Array] = []
        try:
            return make(held)
        except BaseException:
            self.marker.abort()
            raise
        finally:
            for buffer in held:
                self.resources.buffers.give_back(buffer)

    def _taken(self, held: list[Array]) -> Array:
        held.append(self.resources.buffers.take())
        return held[-1]

    def _make(self, number: int, prepared: Prepared, held: list[Array]) -> SeenLeaf:
        begin, end = self._range(number)
        buffer = self._taken(held)
        written, base = buffer[: end - begin], None
        if self.plan.is_in_place:
            base = written
            read_bytes(self.plan.source, begin - self.plan.source.data_offset, base)
            if any(self.plan.segments[segment].noted for segment, *_ in self.plan.parts(begin, end)):
                buffer = self._taken(held)
                written = buffer[: end - begin]
        head = np.frombuffer(self.plan.head, np.uint8)[begin:end]
        written[: len(head)] = head
        made: list[tuple[int, slice, Made]] = []
        for segment, low, high in self.plan.parts(begin, end):
            at = self.plan.offsets[segment] + low - begin
            place = slice(at, at + high - low)
            out, tensor = written[place], self.plan.segments[segment]
            of_base = None if base is None else out if base is written else base[place]
            found = tensor.fill(low, high, out, of_base, prepared.get(segment, {}))
            if tensor.noted and segment >= self.first_segment:
                made.append((segment, place, found))
        mark = self.marker.mark("file", number, written)
        base_mark = None
        if base is not None and not self.plan.is_the_base:
            base_mark = self.marker.mark("base", number, base, known=mark if base is written else None)
        parts = tuple(self._part(number, one, (written, mark), (base, base_mark)) for one in made)
        return SeenLeaf(end - begin, mark, base_mark, parts, self._sent(buffer, begin, end, held))

    def _part(
        self,
        number: int,
        made: tuple[int, slice, Made],
        written: tuple[Array, Mark],
        base: tuple[Array | None, Mark | None],
    ) -> SeenPart:
        """What is kept of a tensor's part of a leaf; where that is all of it, the leaf's marks are known."""
        segment, place, found = made
        turn, size = number - self.plan.offsets[segment] // leaves.LEAF_BYTES, place.stop - place.start
        data, mark = written
        is_all = size == len(data)
        of_part = self.marker.mark(segment, turn, data[place], known=mark if is_all else None)
        data_of_base, base_mark = base
        of_base = None
        if data_of_base is not None:
            known = base_mark if is_all else None
            of_base = self.marker.mark(("base", segment), turn, data_of_base[place], known=known)
        return SeenPart(segment, size, of_part, of_base, found)

    def _sent(self, buffer: Array, begin: int, end: int, held: list[Array]) -> Future[None] | None:
        if self.write is None:
            return None
        sent = self.resources.background.submit(partial(self.write, buffer, end - begin, begin))
        held[:] = [other for other in held if other is not buffer]
        return sent

    def _base_leaf(self, number: int, held: list[Array]) -> SeenLeaf:
        source = self.plan.source
        begin, end = leaves.leaf_range(number, source.file_size)
        data = self._taken(held)[: end - begin]
        read_bytes(source, begin - source.data_offset, data)
        mark = self.marker.mark("base", number, data)
        parts = []
        for segment, first, last in self._base_parts(begin, end):
            turn = number - first // leaves.LEAF_BYTES
            part = data[max(first, begin) - begin : min(last, end) - begin]
            known = mark if len(part) == len(data) else None
            parts.append(
                SeenPart(segment, len(part), None, self.marker.mark(("base", segment), turn, part, known=known), None)
            )
        return SeenLeaf(end - begin, None, mark, tuple(parts))

    @cached_property
    def _base_places(self) -> list[tuple[int, int, int]]:
        """Where in the base's file the edited tensors lie, in order: [begin, end) and number of the segment."""
        at = self.plan.source.data_offset
        return sorted(
            (at + segment.source[0], at + segment.source[1], number)
            for number, segment in enumerate(self.plan.segments)
            if segment.noted and segment.source is not None and segment.source[0] < segment.source[1]
        )

    def _base_parts(self, begin: int, end: int) -> list[tuple[int, int, int]]:
        """The edited tensors that have bytes in [begin, end) of the base's file, with all their bytes there."""
        places = self._base_places
        index = max(0, bisect_right(places, (begin,)) - 1)
        found = []
        while index < len(places) and places[index][0] < end:
            low, high, segment = places[index]
            if max(low, begin) < min(high, end):
                found.append((segment, low, high))
            index += 1
        return found

    def _range(self, number: int) -> tuple[int, int]:
        return leaves.leaf_range(number, self.plan.size)
