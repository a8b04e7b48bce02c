"""A file that grows with a search: an interrupted one goes on where it was, and ends in the same bytes.

A file of JSON lines. The first says which search it is of; every other one is a figure that was measured, in the
order in which the search asks for them:

    {"alignez_tuning": 1, "search": {...}}
    {"figure": {"kind": "answers", "candidate": ..., "first": 0, "last": 32}, "value": [1.0, 0.0, ...]}

A search is deterministic, so it asks for the same figures in the same order; those that the file holds are taken from
it, the others are measured and appended, each by one synced write. Half a line, which a crash left, is cut off.
"""

from __future__ import annotations

import json
import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from alignez_bake.errors import BadInputError
from alignez_bake.growing_file import append, cut_behind, locked_file, what_changed, whole_lines
from alignez_bake.safetensors_io.strict_json import parse_object, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from io import BufferedRandom
    from pathlib import Path

FORMAT: Final = 1
HEADER_KEY: Final = "alignez_tuning"

Key = dict[str, str | int]
"""Which figure: JSON values by name."""


class TuningState:
    """The figures of one search, in the order in which they are asked for.

    Attributes:
        path: of the file; None: nothing is kept on disk.
    """

    def __init__(self, path: Path | None, file: BufferedRandom | None, lines: Sequence[bytes]) -> None:
        """Take up the whole lines after the header."""
        self.path = path
        self._file = file
        self._lines = lines
        self._taken = 0

    def number(self, key: Key, measure: Callable[[], float]) -> float | None:
        """One figure; None stands for one that is not finite.

        Args:
            key: which figure.
            measure: called where the file does not hold it yet.

        Raises:
            BadInputError: the file holds another figure there, or cannot be written; what `measure` refuses.
        """
        value = self._value(key, lambda: _finite(measure()))
        if value is None:
            return None
        if not _is_number(value):
            raise self._changed()
        return float(value)

    def numbers(self, key: Key, count: int, measure: Callable[[], Sequence[float]]) -> list[float]:
        """`count` finite figures; arguments and errors as `number`."""
        value = self._value(key, lambda: list(measure()))
        if not isinstance(value, list) or len(value) != count or not all(map(_is_number, value)):
            raise self._changed()
        return [float(number) for number in value]

    def check_finished(self) -> None:
        """Refuse a file that holds more than the search asked for.

        Raises:
            BadInputError: it does.
        """
        if self._taken < len(self._lines):
            raise BadInputError(f"{self.path} holds more figures than this search asks for: choose another file")

    def _value(self, key: Key, measure: Callable[[], Any]) -> Any:  # noqa: ANN401 - a JSON value
        if self._taken < len(self._lines):
            place = f"{self.path}, line {self._taken + 2}"
            entry = parse_object(self._lines[self._taken], place)
            self._taken += 1
            if entry.keys() != {"figure", "value"} or entry["figure"] != key:
                raise self._changed()
            return entry["value"]
        value = measure()
        self._append({"figure": key, "value": value})
        return value

    def _append(self, entry: Mapping[str, Any]) -> None:
        if self._file is not None:
            append(self._file, self.path, _line(entry))

    def _changed(self) -> BadInputError:
        return BadInputError(
            f"{self.path}, line {self._taken + 1} is not the figure that belongs there: the file was changed; choose "
            "another"
        )


@contextmanager
def tuning_state(path: Path | None, search: Mapping[str, Any]) -> Iterator[TuningState]:
    """Open a new file, or the one that an interrupted run of the same search left.

    Args:
        path: the file; None: nothing is kept on disk.
        search: JSON values that say which search it is: two with equal values measure the same figures.

    Raises:
        BadInputError: the file is of another search (the message names what differs), was changed by hand, is
            something else, cannot be written, or another run is writing to it.
    """
    if path is None:
        yield TuningState(None, None, ())
        return
    with locked_file(path) as file:
        state = TuningState(path, file, _take_up(file, path, search))
        yield state
        state.check_finished()


def _take_up(file: BufferedRandom, path: Path, search: Mapping[str, Any]) -> list[bytes]:
    first = _line({HEADER_KEY: FORMAT, "search": dict(search)})
    lines = whole_lines(file, first, lambda line: _other_file(line, path, json.loads(first)["search"]))
    cut_behind(file, first, lines)
    return lines


def _other_file(line: bytes, path: Path, ours: Mapping[str, Any]) -> BadInputError:
    """Why a file that does not begin with this search's header cannot be taken up."""
    try:
        entry = parse_object(line, f"{path}, line 1")
    except BadInputError as error:
        return BadInputError(f"{path} exists and cannot be continued: {error}")
    theirs = entry.get("search")
    if HEADER_KEY not in entry or not isinstance(theirs, dict):
        return BadInputError(f"{path} exists and is no file of a search that this tool began: choose another file")
    if entry[HEADER_KEY] != FORMAT or isinstance(entry[HEADER_KEY], bool):
        return BadInputError(f"{path} is of format {shown(entry[HEADER_KEY])}: this version goes on with {FORMAT}")
    return BadInputError(
        f"{path} is of another search ({what_changed(theirs, ours)}): choose another file, or the settings of that one"
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _is_number(value: object) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool)


def _line(entry: Mapping[str, Any]) -> bytes:
    return (json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")
