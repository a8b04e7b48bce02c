"""A file that grows batch by batch: an interrupted run goes on where it was, and ends in the same bytes.

Each batch is written by one call and then synced. What a crash left behind of a batch (half a line, or some of its
lines) is cut off, and the batch is made anew; as its seed depends on nothing but its place, it comes out the same.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from alignez_bake.errors import BadInputError
from alignez_bake.growing_file import append, cut_behind, locked_file, what_changed, whole_lines
from alignez_bake.preference_pairs.pair_file import check_origin
from alignez_bake.preference_pairs.records import HEADER_KEY, PairRecord, parse_header, parse_record
from alignez_bake.safetensors_io.strict_json import parse_object

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from io import BufferedRandom
    from pathlib import Path

    from alignez_bake.preference_pairs.records import PairHeader


@dataclass(frozen=True)
class GrowingPairFile:
    """An open, locked file of pairs that ends with a whole batch.

    Attributes:
        path: of the file.
        finished: the records of each batch that an earlier run finished.
        file: the open file; None: nothing is kept on disk.
    """

    path: Path | None
    finished: tuple[tuple[PairRecord, ...], ...]
    file: BufferedRandom | None

    def append(self, records: Sequence[PairRecord]) -> None:
        """Write one whole batch.

        Raises:
            BadInputError: the disk is full, or the file cannot be written any more.
        """
        if self.file is None:
            return
        append(self.file, self.path, "".join(record.line() + "\n" for record in records).encode("utf-8"))


@contextmanager
def growing_pair_file(
    path: Path | None, header: PairHeader, batches: Sequence[Sequence[tuple[str, str, str]]]
) -> Iterator[GrowingPairFile]:
    """Open a new file of pairs, or one that an interrupted run of the same command left.

    Args:
        path: the file; None: nothing is kept on disk.
        header: of the run.
        batches: what each batch will hold, as (query text, objective, side) of each record.

    Raises:
        BadInputError: the file is of another model or made with other settings (the message names them), was
            changed by hand, is no file of pairs, cannot be written, or another run is writing to it.
    """
    if path is None:
        yield GrowingPairFile(None, (), None)
        return
    with locked_file(path) as file:
        finished = _take_up(file, path, header, batches)
        yield GrowingPairFile(path, finished, file)


def _take_up(
    file: BufferedRandom, path: Path, header: PairHeader, batches: Sequence[Sequence[tuple[str, str, str]]]
) -> tuple[tuple[PairRecord, ...], ...]:
    first = (header.line() + "\n").encode("utf-8")
    whole = whole_lines(file, first, lambda line: _other_file(line, path, header))
    ends = list(accumulate(len(batch) for batch in batches))
    if len(whole) > (ends[-1] if ends else 0):
        raise BadInputError(f"{path} holds more pairs than this command makes: choose another file")
    number_finished = sum(end <= len(whole) for end in ends)
    kept = whole[: ends[number_finished - 1]] if number_finished else []
    records = []
    expected = [key for batch in batches for key in batch]
    for number, (line, key) in enumerate(zip(kept, expected, strict=False), start=2):
        place = f"{path}, line {number}"
        record = parse_record(parse_object(line, place), place, None)
        if (record.query["query"], record.objective, record.side) != key:
            raise BadInputError(f"{place} is not the answer that belongs there: the file was changed; choose another")
        records.append(record)
    cut_behind(file, first, kept)
    starts = [0, *ends]
    return tuple(tuple(records[starts[batch] : starts[batch + 1]]) for batch in range(number_finished))


def _other_file(line: bytes, path: Path, header: PairHeader) -> BadInputError:
    """Why a file that does not begin with this run's header cannot be taken up."""
    try:
        entry = parse_object(line, f"{path}, line 1")
        if HEADER_KEY not in entry:
            return BadInputError(f"{path} exists and is no file of pairs that this tool began: choose another file")
        other = parse_header(entry, f"{path}, line 1")
        check_origin(other.origin, header.origin, path)
    except BadInputError as error:
        return BadInputError(f"{path} exists and cannot be continued: {error}")
    ours, theirs = json.loads(header.line())["settings"], other.settings
    return BadInputError(
        f"{path} was begun with other settings ({what_changed(theirs, ours)}): use those, or choose another file"
    )
