"""What a capture will take, known before it runs: the widths of what is read, and the bytes of rows and sums."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from alignez_bake.capture.recorder import MapReading, record
from alignez_bake.capture.statistics import rows_are_less

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from alignez_bake.capture.spec import CaptureSpec, MomentsSpec
    from alignez_bake.capture.token_choice import TokenChoice
    from alignez_bake.language_model.loading import LanguageModel

_FLOAT64: Final = 8
_FLOAT32: Final = 4


class RowSize(NamedTuple):
    """One row of a reading, as the model computes it.

    Attributes:
        width: its numbers.
        item_bytes: of each.
    """

    width: int
    item_bytes: int


def row_sizes(lm: LanguageModel, specs: Sequence[CaptureSpec], ids: Sequence[int]) -> dict[MapReading, RowSize]:
    """The sizes of what the specs read, from a forward pass over one token.

    Modules say their widths in many ways (layouts, fused maps, experts), and all of them by what they give.

    Args:
        lm: the model.
        specs: what is to be recorded.
        ids: of which the first is run.

    Raises:
        BadInputError: a reading that the model does not have.
    """
    places = [MapReading(site, reading.side) for spec in specs for site, reading in spec.placed]
    found = record(lm, [ids[:1]], dict.fromkeys(places, (1,))).values
    return {place: RowSize(rows.shape[1], rows.element_size()) for place, rows in found.items()}


class MomentsSizes(NamedTuple):
    """What one `MomentsSpec` takes.

    Attributes:
        keeps_rows: whether its rows are kept instead of their moments.
        arrays: bytes of each array that stays.
        work: bytes of float64 for one token: Z, D, and the squares of D.
    """

    keeps_rows: bool
    arrays: tuple[int, ...]
    work: int

    @classmethod
    def of(cls, spec: MomentsSpec, sizes: Mapping[MapReading, RowSize], choice: TokenChoice) -> MomentsSizes:
        """The sizes where the tokens of `choice` are kept."""
        d_in = sizes[MapReading(spec.site, spec.key.side)].width
        d_out = sizes[MapReading(spec.target_site, spec.plus.side)].width
        keeps_rows = spec.rows_if_fewer and rows_are_less(choice.count, d_in)
        arrays = (
            (_FLOAT32 * choice.count * d_in, _FLOAT32 * choice.count * d_out)
            if keeps_rows
            else (_FLOAT64 * d_in * (d_in + d_out),)
        )
        return cls(keeps_rows, arrays, _FLOAT64 * (d_in + 2 * d_out))


def cut_batches(batches: Sequence[list[int]], sizes: Sequence[int], most: int) -> Iterator[list[int]]:
    """The batches, those in parts that would take more than `most` bytes.

    Args:
        batches: numbers of items.
        sizes: bytes of each item.
        most: bytes of a part, which holds at least one item.

    Yields:
        The items in the same order.
    """
    for batch in batches:
        part: list[int] = []
        taken = 0
        for item in batch:
            if part and taken + sizes[item] > most:
                yield part
                part, taken = [], 0
            part.append(item)
            taken += sizes[item]
        yield part
