"""Files of texts: plain lines, or JSON lines that hold a text and whatever else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from alignez_bake.errors import BadInputError
from alignez_bake.safetensors_io.strict_json import parse_object, shown

if TYPE_CHECKING:
    from pathlib import Path


class TextLine(NamedTuple):
    """One line that is not blank.

    Attributes:
        number: of the line in its file, from 1 on.
        entry: with the text under the file's key.
    """

    number: int
    entry: dict[str, Any]


def read_text_lines(path: Path, key: str) -> list[TextLine]:
    """Read a file whose first line that is not blank decides: JSON lines if it begins with "{", else plain ones.

    A plain line is a text without white space at its ends; the text of a JSON line is kept as it is, line breaks within
    it too.

    Args:
        path: a file of a size that is no matter.
        key: under which a JSON line has its text.

    Raises:
        BadInputError: not UTF-8, or a line that does not fit; the message has its number.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInputError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    # Not splitlines(): U+2028 and the like are legal inside of a JSON string.
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    as_json = bool(lines) and lines[0][1].startswith("{")
    return [
        TextLine(number, _entry(line, f"{path}, line {number}", key) if as_json else {key: line})
        for number, line in lines
    ]


def _entry(line: str, place: str, key: str) -> dict[str, Any]:
    if not line.startswith("{"):
        raise BadInputError(f"{place} is no JSON object, but the file's first line is one: {shown(line)}")
    entry = parse_object(line.encode("utf-8"), place)
    text = entry.get(key)
    if not isinstance(text, str) or not text.strip():
        raise BadInputError(f"{place} has no text under the key {key!r}")
    return entry
