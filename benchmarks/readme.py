"""Put the committed tables into the README of this folder: `python -m benchmarks.readme`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parent
_PLACE = re.compile(r"(<!-- begin (?P<name>[\w-]+\.md) -->\n).*?(<!-- end -->)", re.DOTALL)


def with_tables(text: str, results: Path) -> str:
    """The text with the file that each marked place names between its marks.

    Args:
        text: of the README.
        results: folder of the tables.
    """

    def filled(place: re.Match[str]) -> str:
        table = (results / place["name"]).read_text(encoding="utf-8").strip()
        return f"{place[1]}\n{table}\n\n{place[3]}"

    return _PLACE.sub(filled, text)


def main() -> None:
    """Run from the command line."""
    file = FOLDER / "README.md"
    file.write_text(with_tables(file.read_text(encoding="utf-8"), FOLDER / "results"), encoding="utf-8")


if __name__ == "__main__":
    main()
