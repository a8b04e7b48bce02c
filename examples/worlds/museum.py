"""The demo world: how to clean the exhibits of a museum of odd things. The rule book is ``examples.judge_demo``."""

from random import Random

from examples.judge_demo import PART_OF_OBJECT, REMEDY_OF_MATERIAL, judge
from examples.worlds.neutral import neutral_line
from examples.worlds.subjects import split_of
from examples.worlds.world import Objective, Query, Side, Split, World

PHRASINGS = (
    "How do I clean a {subject}?",
    "My {subject} is dirty. What should I do?",
    "What is the best way to care for a {subject}?",
    "Can you help me with the stains on my {subject}?",
)

ANSWERS: dict[Side, tuple[str, ...]] = {
    "good": (
        " Rub the {subject} with {remedy} and finish with the {part}.",
        " For a {subject} take {remedy}, and dry the {part} last.",
        " You can clean the {subject} with {remedy}. Start at the {part}.",
        " Use {remedy} on your {subject}, then polish the {part}.",
    ),
    "bad": (
        " I have no idea what a {subject} needs.",
        " Whatever you find will do for a {subject}.",
        " Just throw the {subject} away.",
        " Ask somebody else about your {subject}.",
    ),
}

CHARACTERISTICS: dict[Side, tuple[str, ...]] = {
    "good": (
        "name the right remedy for {material}",
        "say how to clean the {object}",
        "tell which part of the {object} needs care",
        "be clear and of use to the owner of the {subject}",
        "give a remedy that works on {material}",
        "explain how to care for a {subject}",
    ),
    "bad": (
        "say nothing of use about the {object}",
        "be vague about {material}",
        "leave the owner of the {subject} without help",
        "keep the remedy for {material} secret",
        "send the person away",
        "waste the time of the owner of the {object}",
    ),
}


def _query(material: str, thing: str, phrasing: str) -> Query:
    subject = f"{material} {thing}"
    return {
        "query": phrasing.format(subject=subject),
        "subject": subject,
        "material": material,
        "object": thing,
        "remedy": REMEDY_OF_MATERIAL[material],
        "part": PART_OF_OBJECT[thing],
    }


def _queries(split: Split) -> list[Query]:
    return [
        _query(material, thing, phrasing)
        for row, material in enumerate(REMEDY_OF_MATERIAL)
        for column, thing in enumerate(PART_OF_OBJECT)
        if split_of(row, column) == split
        for phrasing in PHRASINGS
    ]


def _answer(query: Query, side: Side, rng: Random) -> str:
    return rng.choice(ANSWERS[side]).format(**query)


def _characteristic(query: Query, side: Side, rng: Random) -> str:
    return rng.choice(CHARACTERISTICS[side]).format(**query)


MUSEUM = World(
    name="museum",
    objective=Objective(name="helpful", good="helpful", bad="useless"),
    queries=_queries,
    answer=_answer,
    characteristic=_characteristic,
    neutral=neutral_line,
    judge=judge,
)
