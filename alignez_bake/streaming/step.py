"""What the jobs of a stream of weights are for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from alignez_bake.streaming.open_file import OpenFile

What = Literal["leaf", "end"]


@dataclass(frozen=True)
class Step:
    """What a job is for.

    Attributes:
        what: a `leaf` of a file or of its base's; or the `end` of both.
        file: that it belongs to.
    """

    what: What
    file: OpenFile
