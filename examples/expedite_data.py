"""Preference data of a world, by its rules: the same question with a good and a bad answer.

``python -m examples.expedite_data --world museum --count 1000 --out preferences.jsonl``

The questions are about the subjects of the training split: none of them is asked when pairs are made or when models are
evaluated.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from alignez_bake.errors import BadInputError
from examples.data_files import some_queries
from examples.preference_tuning import Preference
from examples.worlds import WORLDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from examples.worlds import World


def world_preferences(world: World, count: int, seed: int = 0) -> list[Preference]:
    """Draw distinct questions, as many subjects as possible, and answer each both ways.

    A beginning of the list is itself a fair draw, so that parts of the data are nested.

    Args:
        world: whose rules decide what is good.
        count: of preferences, at least 1.
        seed: of questions and of forms of answer.

    Raises:
        BadInputError: more than the world has questions to train on.
    """
    queries = world.queries("training")
    if not 1 <= count <= len(queries):
        raise BadInputError(f"{count} preferences: the world {world.name} has questions for 1 to {len(queries)}")
    rng = Random(f"{world.name} preferences {seed}")
    return [
        Preference(query["query"], world.answer(query, "good", rng), world.answer(query, "bad", rng))
        for query in some_queries(queries, count, rng)
    ]


def share_of(preferences: Sequence[Preference], percent: float) -> list[Preference]:
    """The first so many per cent, at least one."""
    return list(preferences[: max(1, round(len(preferences) * percent / 100))])


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.expedite_data", description=__doc__)
    parser.add_argument("--world", choices=sorted(WORLDS), default="museum")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="JSON lines with prompt, chosen and rejected")
    options = parser.parse_args()
    try:
        made = world_preferences(WORLDS[options.world], options.count, options.seed)
    except BadInputError as error:
        parser.error(str(error))
    lines = [json.dumps({"prompt": one.query, "chosen": one.chosen, "rejected": one.rejected}) for one in made]
    options.out.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    print(f"{len(made)} preferences in {options.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
