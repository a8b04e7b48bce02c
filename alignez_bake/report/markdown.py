"""Strings of others in Markdown: shown as they are, never as markup, HTML, links or further lines."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# A backslash before any of these makes it plain text in CommonMark, `<` and `&` included; "://" would become a link.
_SPECIAL: Final = re.compile(r"([\\`*_{}\[\]<>#|~&$!]|:(?=//))")
_SHORTENED_AT: Final = 4000


def one_line(text: str) -> str:
    """The printable characters of a text, on one line; longer ones are cut at 4000 characters."""
    cleaned = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(cleaned.split())[:_SHORTENED_AT]


def escaped(text: str) -> str:
    """A text as part of a line. Not at the beginning of a line, where "-" or "1." would make a list."""
    return _SPECIAL.sub(r"\\\1", one_line(text))


def code(text: str) -> str:
    """A text as inline code; not for cells of a table, which end at "|" even there."""
    line = one_line(text)
    ticks = "`" * (_longest_run(line) + 1)
    space = " " if line.startswith("`") or line.endswith("`") or not line else ""
    return f"{ticks}{space}{line}{space}{ticks}"


def fenced(text: str, language: str = "text") -> str:
    """A text of any number of lines as a block of code; other control characters become spaces."""
    lines = ["".join(c if c.isprintable() or c == "\t" else " " for c in line) for line in text.splitlines()]
    fence = "`" * max(3, _longest_run(text) + 1)
    return "\n".join([f"{fence}{language}", *lines, fence])


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; its cells are escaped here."""
    lines = [columns, ["---"] * len(columns), *([escaped(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _longest_run(text: str) -> int:
    """Length of the longest run of backticks."""
    return max((len(run) for run in re.findall("`+", text)), default=0)
