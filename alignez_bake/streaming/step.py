"""What the jobs of a stream of weights are for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from alignez_bake.streaming.open_file import OpenFile

What = Literal["begin", "block", "end", "file"]


@dataclass(frozen=True)
class Step:
    """What a job is for.

    Attributes:
        what: `begin` and `end` of a segment; a `block`; the end of a `file`.
        file: that it belongs to.
        segment: number of the segment.
    """

    what: What
    file: OpenFile
    segment: int
