"""One weight file of a result, before it is written."""

from __future__ import annotations

import struct
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING

from alignez_bake.safetensors_io.writer import TensorSlot, aligned, encode_header
from alignez_bake.streaming.segments import CopiedTensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from alignez_bake.safetensors_io.header import Header
    from alignez_bake.streaming.segments import Segment


@dataclass(frozen=True)
class FilePlan:
    """A weight file.

    Attributes:
        name: its name, which is the base's.
        source: header of the base's file.
        head: its first bytes: length and text of the header.
        segments: its tensors, in the order of the data.
    """

    name: str
    source: Header
    head: bytes
    segments: tuple[Segment, ...]

    @property
    def size(self) -> int:
        """Of the file, in bytes."""
        return self.offsets[-1]

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where each segment begins in the file, and where the last one ends."""
        return tuple(accumulate((_slot(segment).nbytes for segment in self.segments), initial=len(self.head)))

    def offset(self, segment: int) -> int | None:
        """Where a segment begins in the file, the file's size after the last; None where there is no such segment."""
        return self.offsets[segment] if 0 <= segment <= len(self.segments) else None

    def parts(self, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
        """What lies in bytes [begin, end) of the file: numbers of segments, each with its bytes [low, high) there."""
        number = max(0, bisect_right(self.offsets, begin) - 1)
        while number < len(self.segments) and self.offsets[number] < end:
            low, high = max(begin, self.offsets[number]), min(end, self.offsets[number + 1])
            if low < high:
                yield number, low - self.offsets[number], high - self.offsets[number]
            number += 1

    @property
    def is_the_base(self) -> bool:
        """Whether the file is the base's, byte for byte."""
        return self.head == _head(self.source) and all(isinstance(segment, CopiedTensor) for segment in self.segments)

    @cached_property
    def is_in_place(self) -> bool:
        """Whether all that is made of the base lies where it lies in the base's file, in the same dtype.

        Then each part of the file needs the same part of the base's, and both can be hashed as it is made.
        """
        begin = len(self.head)
        return self.head == self.base_head and all(
            segment.source == (low - begin, high - begin)
            for segment, low, high in zip(self.segments, self.offsets, self.offsets[1:], strict=False)
        )

    @property
    def base_head(self) -> bytes:
        """The first bytes of the base's file."""
        return _head(self.source)


def plan_file(name: str, source: Header, segments: Sequence[Segment]) -> FilePlan:
    """The plan of a file; its metadata are the base's, and its header is the base's text where it says the same.

    The segments keep their order, unless that would leave a tensor at an offset that its dtype cannot be read from:
    then they are sorted, stably, the widest first.

    Raises:
        ValueError: a tensor that is given twice.
    """
    by_name = {segment.name: segment for segment in segments}
    if len(by_name) < len(segments):
        raise ValueError(f"a tensor of {name} is given twice")
    same = [(s.name, s.dtype, s.shape) for s in segments] == [
        (entry.name, entry.dtype, entry.shape) for entry in source.entries.values()
    ]
    if same:
        return FilePlan(name, source, _head(source), tuple(segments))
    slots = aligned([_slot(segment) for segment in segments])
    return FilePlan(name, source, encode_header(slots, source.metadata), tuple(by_name[slot.name] for slot in slots))


def _slot(segment: Segment) -> TensorSlot:
    return TensorSlot(segment.name, segment.dtype, segment.shape)


def _head(header: Header) -> bytes:
    return struct.pack("<Q", len(header.header_bytes)) + header.header_bytes
