"""A world as `examples.train` writes it: the base, its tuned twin, queries, documents, and who judges."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alignez_bake.pipeline import Asked, read_asked
from alignez_bake.prompts.queries import read_queries
from examples.worlds import WORLDS

if TYPE_CHECKING:
    from pathlib import Path

    from alignez_bake.evaluation.judge import Judge
    from alignez_bake.prompts.queries import Query


@dataclass(frozen=True)
class WorldFolder:
    """What a benchmark reads of a world.

    Attributes:
        name: such as `museum llama`: world and architecture.
        base: folder of the base.
        tuned: folder of its tuned twin, the yardstick.
        asked: objective and the queries that pairs are made from.
        held_out: queries of evaluation; none of their subjects is in `asked`.
        first_half: places in `held_out` of half of its subjects; strengths are picked on these.
        second_half: places of the other subjects; picked strengths are scored on these.
        good_documents: held-out queries with right answers.
        neutral: texts on other things.
        judge: by rule; good above 0.
        prompt_template: what a query becomes; None where the chat template or AlignEZ's form says it.
    """

    name: str
    base: Path
    tuned: Path
    asked: Asked
    held_out: tuple[Query, ...]
    first_half: tuple[int, ...]
    second_half: tuple[int, ...]
    good_documents: tuple[dict[str, Any], ...]
    neutral: tuple[str, ...]
    judge: Judge
    prompt_template: str | None = None


def read_world(folder: Path) -> WorldFolder:
    """Read a world's folder.

    Raises:
        FileNotFoundError: a file of it is missing.
        BadInputError: a file of queries or objectives cannot be read.
    """
    measured = json.loads((folder / "measured.json").read_text(encoding="utf-8"))
    world = WORLDS[measured["world"]]
    held_out = tuple(read_queries(folder / "heldout.jsonl").queries)
    first, second = halves([str(query["subject"]) for query in held_out])
    documents = (folder / "good_documents.jsonl").read_text(encoding="utf-8").splitlines()
    return WorldFolder(
        name=f"{measured['world']} {measured['architecture']}",
        base=folder / "base",
        tuned=folder / "tuned",
        asked=read_asked(world.objective.name, folder / "objectives.json", folder / "queries.jsonl"),
        held_out=held_out,
        first_half=first,
        second_half=second,
        good_documents=tuple(json.loads(line) for line in documents),
        neutral=tuple((folder / "neutral.txt").read_text(encoding="utf-8").splitlines()),
        judge=world.judge,
        prompt_template=measured.get("prompt_template"),
    )


def halves(subjects: list[str]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Places in two parts of like size that have no subject in common.

    Args:
        subjects: of each query.
    """
    number = {subject: place for place, subject in enumerate(dict.fromkeys(subjects))}
    first = tuple(place for place, subject in enumerate(subjects) if number[subject] % 2 == 0)
    second = tuple(place for place, subject in enumerate(subjects) if number[subject] % 2 == 1)
    return first, second
