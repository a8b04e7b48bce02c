"""How the base is asked: data alone, so that whoever only reads headers imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from alignez_bake.errors import BadInputError

if TYPE_CHECKING:
    from pathlib import Path

_OF_RUNS: Final = ("pairs", "queries", "objective", "objectives_file", "prompt_template")


@dataclass(frozen=True)
class FeasibilitySettings:
    """How the base is asked.

    Attributes:
        pairs: a file of pairs; None: the base writes a hundred, which are not kept.
        queries: a file of queries for these; those that the project ships unless given.
        objective: `name[=weight],...`; `helpful`, or with pairs all that they have, unless given.
        objectives_file: objectives of the user's own.
        prompt_template: how a query becomes a prompt.
        device: where the model runs.
        seed: of everything that is sampled.
        batch_size: texts that run together.
        trust_remote_code: passed to transformers' loader.
    """

    pairs: Path | None = None
    queries: Path | None = None
    objective: str | None = None
    objectives_file: Path | None = None
    prompt_template: str | None = None
    device: str = "cpu"
    seed: int = 0
    batch_size: int = 64
    trust_remote_code: bool = False

    def check(self, *, runs: bool) -> None:
        """Refuse what contradicts itself, and what says how the base is run where it is not.

        Raises:
            BadInputError: pairs and queries, or one of the first five without `runs`.
        """
        given = [name for name in _OF_RUNS if getattr(self, name) is not None]
        if given and not runs:
            option = f"--{given[0].replace('_', '-')}"
            raise BadInputError(
                f"{option} is for --feasibility, without which nothing is run: add that, or leave it out"
            )
        if self.pairs is not None and self.queries is not None:
            raise BadInputError("--queries are for pairs that the base writes, and --pairs gives some: leave one out")
