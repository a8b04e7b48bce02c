"""Answers with two traits that any persona may ask for: their tone, warm or cold, and their length, brief or wordy.

Tone is the first words of an answer, length is whether it stops after its first clause, and neither says anything about
the other: by rule, each answer has each trait or has not. What a persona does to the *other* trait is the corpus's
choice (`Leak`): a warm assistant may also be a wordier one, as personas of real models have more than one trait each.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Final, Literal, TypeAlias

from examples.worlds.world import Objective, Query, Side

Trait: TypeAlias = Literal["warm", "brief"]
Sides: TypeAlias = Mapping[Trait, Side]

TRAITS: Final[tuple[Trait, ...]] = ("warm", "brief")
OBJECTIVES: Final[Mapping[Trait, Objective]] = {
    "warm": Objective(name="warm", good="warm", bad="cold"),
    "brief": Objective(name="brief", good="brief", bad="wordy"),
}
TOOLS: Final = {
    "kettle": "vinegar",
    "spoon": "salt",
    "lamp": "spirit",
    "clock": "oil",
    "chair": "wax",
    "table": "soap",
    "door": "water",
    "boat": "tar",
}
VERBS: Final = ("clean", "mend", "store", "polish", "check", "keep")
ASKINGS: Final = ("How do I {verb} the {thing}?", "Tell me how to {verb} the {thing}.")
GREETINGS: Final[Mapping[Side, tuple[str, ...]]] = {
    "good": (" Gladly, my friend,", " With pleasure, dear,"),
    "bad": (" Well, if you must,", " Again this, then"),
}
CLAUSE: Final = " {verb} the {thing} with {tool}"
ENDLESS: Final = " again and again"
MORE: Final = (", then wait, and {verb} it with {tool}" + ENDLESS, ", and after that with more {tool}," + ENDLESS)
CHARACTERISTICS: Final[Mapping[Trait, Mapping[Side, tuple[str, ...]]]] = {
    "warm": {"good": ("be warm", "be kind"), "bad": ("be cold", "be harsh")},
    "brief": {"good": ("be brief", "be short"), "bad": ("be wordy", "be long")},
}


@dataclass(frozen=True)
class Leak:
    """How much a persona of one trait moves the other: its share of answers there is 1/2 ± this.

    Attributes:
        warm_to_brief: by how much more often an answer of the warm persona is wordy, and one of the cold one brief.
        brief_to_warm: by how much more often an answer of the brief persona is cold, and one of the wordy one warm.
    """

    warm_to_brief: float = 0.0
    brief_to_warm: float = 0.0

    def of(self, trait: Trait) -> float:
        """What a persona of this trait does to the other one."""
        return self.warm_to_brief if trait == "warm" else self.brief_to_warm


def queries(part: int, parts: int = 3) -> list[Query]:
    """Questions in a fixed order; every part asks about other pairs of verb and thing."""
    return [
        {"query": asking.format(verb=verb, thing=thing), "verb": verb, "thing": thing}
        for row, verb in enumerate(VERBS)
        for column, thing in enumerate(TOOLS)
        if (row + column) % parts == part
        for asking in ASKINGS
    ]


def answer(query: Query, sides: Sides, rng: Random) -> str:
    """An answer with the traits asked for; begins with one space, as the prompt form ends without one."""
    more = rng.choice(MORE) if sides["brief"] == "bad" else ""
    text = rng.choice(GREETINGS[sides["warm"]]) + CLAUSE + more + "."
    return text.format(verb=query["verb"], thing=query["thing"], tool=TOOLS[query["thing"]])


def traits(text: str) -> dict[Trait, Side | None]:
    """Which traits a text has, each judged by itself: None where it shows neither side of one."""
    tone: Side | None = None
    for side, greetings in GREETINGS.items():
        if text.startswith(greetings):
            tone = side
    length: Side | None = "bad" if ENDLESS in text else "good" if text.rstrip().endswith(".") else None
    return {"warm": tone, "brief": length}


def is_true(query: Query, text: str) -> bool:
    """Whether an answer says what its query asks for: the verb, the thing, and the tool that belongs to it."""
    return CLAUSE.format(verb=query["verb"], thing=query["thing"], tool=TOOLS[query["thing"]]) in text
