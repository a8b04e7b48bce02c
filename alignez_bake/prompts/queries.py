"""Queries: what the model is asked when it makes its own pairs, and when it is evaluated."""

from __future__ import annotations

import json
from importlib import resources
from typing import TYPE_CHECKING, Any, NamedTuple

from alignez_bake.errors import BadInputError
from alignez_bake.prompts.text_lines import read_text_lines

if TYPE_CHECKING:
    from pathlib import Path

Query = dict[str, Any]
"""A query: the key `query` holds its text; all other keys are kept as they are, for judges."""

MAX_FILE_BYTES = 64 * 1024 * 1024


class Queries(NamedTuple):
    """What a file of queries holds.

    Attributes:
        queries: the distinct ones, in the order of the file.
        duplicates: how many further lines had the text of an earlier one and were dropped.
    """

    queries: list[Query]
    duplicates: int


def read_queries(path: Path) -> Queries:
    """Read a file of queries: JSON lines with the key `query`, or plain lines.

    Which of them, the first line decides (`text_lines.read_text_lines`). Blank lines are dropped.

    Raises:
        BadInputError: no such file, too large, not UTF-8, no query in it, or a line that does not fit; the
            message has its number.
    """
    if not path.is_file():
        raise BadInputError(f"no such file of queries: {path}")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise BadInputError(f"{path} has {path.stat().st_size} bytes: a file of queries has at most {MAX_FILE_BYTES}")
    lines = read_text_lines(path, "query")
    if not lines:
        raise BadInputError(f"{path} holds no query")
    distinct: dict[str, Query] = {}
    for line in lines:
        distinct.setdefault(line.entry["query"], line.entry)
    return Queries(list(distinct.values()), len(lines) - len(distinct))


def shipped_queries(objective: str) -> list[Query]:
    """The general queries that the project ships, for one objective.

    Args:
        objective: a shipped objective gives those that were written for it; any other name gives all.

    Returns:
        Queries with the key `query` alone, in a fixed order.
    """
    file = resources.files("alignez_bake.prompts.data").joinpath("general_queries.jsonl")
    entries = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    fitting = [entry for entry in entries if objective in entry["objectives"]]
    return [{"query": entry["query"]} for entry in fitting or entries]


def neutral_texts() -> list[str]:
    """The neutral texts that the project ships: what an edit should leave alone."""
    file = resources.files("alignez_bake.prompts.data").joinpath("neutral.txt")
    return [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
