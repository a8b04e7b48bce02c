"""What a stream of weights has seen: sizes, hashes, and how much of each edit was kept."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from alignez_bake.lowering.delivery import DeliverySums

if TYPE_CHECKING:
    from collections.abc import Mapping

    from alignez_bake.lowering.rounding import Rounding

Way = Literal["written", "copied", "hard-linked", "reflinked"]


@dataclass(frozen=True)
class WrittenTensor:
    """An edited or new tensor.

    Attributes:
        name: its key.
        hash: of its bytes in the result, hexadecimal.
        base_hash: of its bytes in the base; None where these did not pass.
        sums: how much of its edit the stored values hold; None of a new one.
        rounding: `carry` where any of its matrices is rounded so.
    """

    name: str
    hash: str
    base_hash: str | None
    sums: DeliverySums | None
    rounding: Rounding = "nearest"


@dataclass(frozen=True)
class WrittenFile:
    """A weight file of a result.

    Attributes:
        name: its name, which is the base's.
        way: how it came to be.
        size: in bytes.
        hash: of all its bytes, hexadecimal.
        base_hash: of the base's file.
        tensors: the edited and new ones in it, in the order of the data.
    """

    name: str
    way: Way
    size: int
    hash: str
    base_hash: str
    tensors: tuple[WrittenTensor, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As JSON values; floats keep all their digits."""
        return asdict(self)

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> WrittenFile:
        """What `to_json` gave."""
        tensors = tuple(tensor_from_json(tensor) for tensor in value["tensors"])
        return WrittenFile(**{**value, "tensors": tensors})


def tensor_from_json(value: Mapping[str, Any]) -> WrittenTensor:
    """What `asdict` gave of a tensor."""
    sums = value["sums"]
    return WrittenTensor(**{**value, "sums": None if sums is None else DeliverySums(**sums)})
