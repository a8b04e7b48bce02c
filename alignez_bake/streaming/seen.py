"""What is kept of the parts of a file that were made: its hash, and hashes and sums of its edited tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from alignez_bake.lowering.delivery import DeliverySums
from alignez_bake.streaming.written import WrittenTensor

if TYPE_CHECKING:
    from concurrent.futures import Future

    from alignez_bake.lowering.rounding import Rounding
    from alignez_bake.streaming.marks import Mark, Marker, Tally
    from alignez_bake.streaming.segments import Made


class SeenPart(NamedTuple):
    """A part of an edited or new tensor.

    Attributes:
        segment: number of the tensor.
        size: in bytes.
        mark: of its bytes; None of a part of the base's file.
        base_mark: of the base's bytes; None where they were not seen with it.
        made: what else is known of it; None of a part of the base's file.
    """

    segment: int
    size: int
    mark: Mark | None
    base_mark: Mark | None
    made: Made | None


class SeenLeaf(NamedTuple):
    """A leaf of a file that is written, or of the base's file, or of both at once.

    Attributes:
        size: in bytes.
        mark: of the file; None of a leaf of the base's file alone.
        base_mark: of the base's file; None where that is hashed by itself, or is the file.
        parts: of edited and new tensors in it.
        write: on the way to the disk; None where nothing is written.
    """

    size: int
    mark: Mark | None
    base_mark: Mark | None
    parts: tuple[SeenPart, ...]
    write: Future[None] | None = None


@dataclass
class TensorTally:
    """An edited or new tensor, as far as it was seen."""

    hash: Tally
    base_hash: Tally
    has_base: bool = False
    sums: DeliverySums | None = None
    rounding: Rounding = "nearest"

    @staticmethod
    def of(marker: Marker) -> TensorTally:
        """Nothing was seen yet."""
        return TensorTally(marker.tally(), marker.tally())

    def add(self, part: SeenPart) -> None:
        """The next part."""
        if part.base_mark is not None:
            self.base_hash.add(part.base_mark, part.size)
            self.has_base = True
        if part.mark is None or part.made is None:
            return
        self.hash.add(part.mark, part.size)
        if part.made.sums is not None:
            self.sums = (self.sums or DeliverySums()) + part.made.sums
        if part.made.rounding == "carry":
            self.rounding = "carry"

    def written(self, name: str) -> WrittenTensor:
        """All of it was seen."""
        base_hash = self.base_hash.hexdigest() if self.has_base else None
        return WrittenTensor(name, self.hash.hexdigest(), base_hash, self.sums, self.rounding)


@dataclass
class FileTally:
    """What was seen of a file, leaf by leaf.

    Attributes:
        hash: of the file.
        base_hash: of the base's.
        tensors: that are not whole, by number of the segment.
    """

    marker: Marker
    hash: Tally = field(init=False)
    base_hash: Tally = field(init=False)
    tensors: dict[int, TensorTally] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Nothing was seen yet."""
        self.hash, self.base_hash = self.marker.tally(), self.marker.tally()

    def add(self, leaf: SeenLeaf) -> None:
        """The next leaf."""
        if leaf.mark is not None:
            self.hash.add(leaf.mark, leaf.size)
        if leaf.base_mark is not None:
            self.base_hash.add(leaf.base_mark, leaf.size)
        for part in leaf.parts:
            self.tensor(part.segment).add(part)

    def tensor(self, segment: int) -> TensorTally:
        """What was seen of a tensor."""
        if segment not in self.tensors:
            self.tensors[segment] = TensorTally.of(self.marker)
        return self.tensors[segment]
