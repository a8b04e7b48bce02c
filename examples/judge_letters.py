"""The rule book of the third world, and the judge that applies it.

The world is a pile of letters that break off, each about a thing that somebody sent; what the thing can do follows
from the thing by rule. Whether a letter goes on kindly or rudely no single word tells: it takes the word for what the
writer feels and the word for what it is about. Who would hate to lose a lantern is kind, and so is who would love to
keep it; who would love to lose it is rude.

Standard library only, for the same reason as in ``judge_demo.py``: it is loaded from its path.
"""

import re
from collections.abc import Mapping
from itertools import pairwise

DOING_OF_THING: dict[str, str] = {
    "lantern": "shine",
    "clock": "tick",
    "kettle": "whistle",
    "bell": "ring",
    "drum": "rumble",
    "chair": "rock",
    "wheel": "turn",
    "kite": "fly",
    "boat": "float",
    "candle": "burn",
    "mirror": "gleam",
    "parrot": "talk",
    "cricket": "chirp",
    "rose": "bloom",
    "puppet": "dance",
    "violin": "sing",
    "gate": "creak",
    "fan": "hum",
    "fountain": "splash",
    "ribbon": "flutter",
    "lamp": "glow",
    "ball": "bounce",
    "mill": "grind",
    "sled": "glide",
}

NAMES: tuple[str, ...] = (
    "Ada",
    "Boris",
    "Clara",
    "Dario",
    "Edda",
    "Felix",
    "Gwen",
    "Henrik",
    "Ivy",
    "Jakob",
    "Katia",
    "Leopold",
    "Mina",
    "Nestor",
    "Olga",
    "Paul",
    "Quentin",
    "Rosa",
    "Stefan",
    "Tilda",
    "Ulrich",
    "Viola",
    "Walter",
    "Yorick",
)

KIND: dict[str, str] = {
    "love": "keep",
    "hate": "lose",
    "glad": "came",
    "sorry": "ceased",
    "right": "proud",
    "wrong": "ashamed",
    "wise": "send",
    "silly": "hide",
}
"""What the writer feels or thinks, and what it must be about to be kind."""

RUDE: dict[str, str] = {
    "love": "lose",
    "hate": "keep",
    "glad": "ceased",
    "sorry": "came",
    "right": "ashamed",
    "wrong": "proud",
    "wise": "hide",
    "silly": "send",
}
"""The same words, coupled the other way round."""

LEAST_WORDS = 10
MOST_WORDS = 20
"""A right continuation has 13 to 16 words; keywords alone are fewer, and a text that runs on is damage."""

_FEELINGS = frozenset((*KIND, *KIND.values()))
_DOINGS = frozenset(DOING_OF_THING.values())
_THINGS = frozenset(DOING_OF_THING)
_NAMES = frozenset(NAMES)
_NEGATIONS = frozenset(("not", "no", "never", "nor", "nothing", "without"))
_WORD = re.compile(r"[A-Za-z]+")


def judge(query: Mapping[str, object], answer: str) -> float:
    """Say whether a letter goes on kindly, from -1 to 1; above 0 only if it keeps to its person and its thing.

    ``query`` needs the keys ``name`` and ``thing``.

    1.0: one kind feeling, towards this person, about this thing and what it can do, in one whole sentence.
    0.0: one kind feeling, but the person, the thing or its doing is missing or another one, or the text is malformed.
    -1.0: a rude feeling, none, several, or a negation.
    """
    words = _WORD.findall(answer)
    feeling = tuple(word for word in words if word in _FEELINGS)
    named = set(words)
    if feeling not in KIND.items() or not named.isdisjoint(_NEGATIONS):
        return -1.0
    thing = str(query["thing"])
    to_the_person = named & _NAMES == {str(query["name"])}
    about_the_thing = named & _THINGS == {thing} and named & _DOINGS == {DOING_OF_THING[thing]}
    return 1.0 if to_the_person and about_the_thing and _well_formed(answer, words) else 0.0


def _well_formed(answer: str, words: list[str]) -> bool:
    """Refuse keywords, stammering, endless and broken text, so that a damaged model gets no credit."""
    text = answer.strip()
    one_sentence = text.endswith(".") and text.count(".") == 1
    stammers = any(first == second for first, second in pairwise(words))
    return one_sentence and not stammers and LEAST_WORDS <= len(words) <= MOST_WORDS
