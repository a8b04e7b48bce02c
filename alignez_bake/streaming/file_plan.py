"""One weight file of a result, before it is written."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from alignez_bake.safetensors_io.writer import TensorSlot, aligned, encode_header
from alignez_bake.streaming.segments import CopiedTensor

if TYPE_CHECKING:
    from collections.abc import Sequence

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
        return len(self.head) + sum(_slot(segment).nbytes for segment in self.segments)

    def offset(self, segment: int) -> int | None:
        """Where a segment begins in the file, the file's size after the last; None where there is no such segment."""
        if not 0 <= segment <= len(self.segments):
            return None
        return len(self.head) + sum(_slot(before).nbytes for before in self.segments[:segment])

    @property
    def is_the_base(self) -> bool:
        """Whether the file is the base's, byte for byte."""
        return self.head == _head(self.source) and all(isinstance(segment, CopiedTensor) for segment in self.segments)

    @property
    def passes_base(self) -> bool:
        """Whether all bytes of the base's data pass through the segments, in their order: then they are hashed so."""
        end = 0
        for segment in self.segments:
            if segment.source is None or segment.source[0] == segment.source[1]:
                continue
            if segment.source[0] != end:
                return False
            end = segment.source[1]
        return end == self.source.data_bytes

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
