"""What the YAML files here name: the demo's held-out questions, a good and a bad answer to each, and the rule."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from examples.judge_demo import judge
from examples.worlds.museum import MUSEUM

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from datasets import Dataset

HELD_OUT = Path(__file__).parents[1] / "demo" / "heldout.jsonl"


def documents(**_metadata: object) -> dict[str, Dataset]:
    """The questions as the harness takes a data set of one's own: by split."""
    from datasets import Dataset  # noqa: PLC0415 - comes with the harness

    rng = Random("museum choices")
    queries = [json.loads(line) for line in HELD_OUT.read_text("utf-8").splitlines()]
    made = [
        {**query, "good": MUSEUM.answer(query, "good", rng), "bad": MUSEUM.answer(query, "bad", rng)}
        for query in queries
    ]
    return {"test": Dataset.from_list(made)}


def judged(document: Mapping[str, object], results: Sequence[str]) -> dict[str, float]:
    """Whether the rule book calls a generated answer good."""
    return {"good": float(judge(document, results[0]) > 0)}
