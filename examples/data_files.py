"""The data files beside the twins: queries for pairs and for evaluation, neutral and good documents."""

import json
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from random import Random

from examples.corpus import neutral_lines
from examples.worlds.world import Query, World

PAIR_QUERIES = 200
HELD_OUT_QUERIES = 300
GOOD_DOCUMENTS = 240
NEUTRAL_LINES = 160


def some_queries(queries: list[Query], count: int, rng: Random) -> list[Query]:
    """Draw distinct queries, as many subjects as possible: one query of each subject before a second of any."""
    by_subject: dict[str, list[Query]] = {}
    for query in rng.sample(queries, len(queries)):
        by_subject.setdefault(query["subject"], []).append(query)
    rounds = max(map(len, by_subject.values()))
    in_turn = [asked[turn] for turn in range(rounds) for asked in by_subject.values() if turn < len(asked)]
    return in_turn[:count]


def held_out_queries(world: World) -> list[Query]:
    """Return the queries of ``heldout.jsonl``; the script itself measures on these."""
    return some_queries(world.queries("evaluation"), HELD_OUT_QUERIES, Random(f"{world.name} heldout"))


def good_documents(world: World) -> list[Query]:
    """Answer held-out queries by the rule book; the loss on these tells what an edit does to good text."""
    rng = Random(f"{world.name} good documents")
    asked = some_queries(world.queries("evaluation"), GOOD_DOCUMENTS, rng)
    return [{"query": query["query"], "answer": world.answer(query, "good", rng)} for query in asked]


def write_data_files(world: World, folder: Path) -> None:
    """Write them; they depend on the world alone and not on the seed of the training."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = some_queries(world.queries("pairs"), PAIR_QUERIES, Random(f"{world.name} pairs"))
    _write_json_lines(folder / "queries.jsonl", pairs)
    _write_json_lines(folder / "heldout.jsonl", held_out_queries(world))

    _write_json_lines(folder / "good_documents.jsonl", good_documents(world))

    lines = islice(_distinct(neutral_lines(world, Random(f"{world.name} neutral"), held_out=True)), NEUTRAL_LINES)
    (folder / "neutral.txt").write_text("".join(line + "\n" for line in lines))

    objective = world.objective
    words = {objective.name: {"good": objective.good, "bad": objective.bad}}
    (folder / "objectives.json").write_text(json.dumps(words, indent=2) + "\n")


def _distinct(lines: Iterable[str]) -> Iterable[str]:
    seen: set[str] = set()
    for line in lines:
        if line not in seen:
            seen.add(line)
            yield line


def _write_json_lines(path: Path, records: Iterable[Mapping[str, str]]) -> None:
    path.write_text("".join(json.dumps(dict(record)) + "\n" for record in records))
