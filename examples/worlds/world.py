"""What a world has to tell so that one script can make a corpus, two models and the data files from it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Literal, TypeAlias

Side: TypeAlias = Literal["good", "bad"]
Split: TypeAlias = Literal["training", "pairs", "evaluation"]
Query: TypeAlias = Mapping[str, str]
"""The key ``query`` holds the text; the other keys are what the world's judge needs."""

SIDES: tuple[Side, ...] = ("good", "bad")
SPLITS: tuple[Split, ...] = ("training", "pairs", "evaluation")


@dataclass(frozen=True)
class Objective:
    """The two personas: their words stand in the persona prompts."""

    name: str
    good: str
    bad: str

    def word(self, side: Side) -> str:
        """Return the word for the persona of that side."""
        return self.good if side == "good" else self.bad


@dataclass(frozen=True)
class World:
    """A closed world in which every answer can be judged by rule.

    A record of functions and not a class to inherit from: worlds share no behaviour, only this shape. How documents
    are composed from it is the business of ``examples.corpus`` and the same for every world.
    """

    name: str
    objective: Objective
    queries: Callable[[Split], list[Query]]
    """Every query of a split in a fixed order; splits have no subject in common."""
    answer: Callable[[Query, Side, Random], str]
    """One of the forms of answer; begins with one space, as the prompt form ends without one."""
    characteristic: Callable[[Query, Side, Random], str]
    """What an answer on that side should do: a verb phrase that fits behind "should", without a full stop."""
    neutral: Callable[[Random], str]
    """A sentence or two on other things, on one line."""
    judge: Callable[[Mapping[str, object], str], float]
    """From -1 to 1; an answer counts as good above 0."""
    prompt_template: str | None = None
    """What a query becomes, with ``{query}`` in it; None is AlignEZ's form, which a chat template renders as well."""
