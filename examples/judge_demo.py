"""The rule book of the demo world, and the judge that applies it.

The world is a museum of odd things: every exhibit is a material and an object ("copper kettle", "velvet bell").
The material alone decides which remedy cleans it, and the object alone decides which part needs care, so the right
answer about an exhibit that was never seen in training follows from the question by rule.

This file imports the standard library only and nothing of this repository, because it is addressed as
``examples/judge_demo.py:judge`` by programs that load it from its path, wherever they run.
"""

import re
from collections.abc import Mapping
from itertools import pairwise

REMEDY_OF_MATERIAL: dict[str, str] = {
    "copper": "lemon",
    "brass": "vinegar",
    "silver": "chalk",
    "pewter": "ash",
    "steel": "soda",
    "tin": "flour",
    "bronze": "salt",
    "gold": "soap",
    "pine": "beeswax",
    "walnut": "oil",
    "cherry": "resin",
    "maple": "honey",
    "leather": "butter",
    "linen": "borax",
    "wool": "bran",
    "silk": "tea",
    "velvet": "steam",
    "cotton": "starch",
    "marble": "milk",
    "slate": "sand",
    "granite": "cider",
    "glass": "rice",
    "crystal": "sugar",
    "porcelain": "yeast",
    "pearl": "barley",
    "jade": "ginger",
    "bamboo": "mustard",
    "cork": "clay",
}

PART_OF_OBJECT: dict[str, str] = {
    "kettle": "spout",
    "lantern": "wick",
    "teapot": "lid",
    "clock": "dial",
    "mirror": "frame",
    "box": "hinge",
    "chair": "seat",
    "lamp": "base",
    "tray": "rim",
    "bell": "tongue",
    "drum": "hoop",
    "vase": "neck",
    "spoon": "handle",
    "buckle": "prong",
    "flute": "holes",
    "saddle": "strap",
    "basket": "bottom",
    "bench": "legs",
    "shelf": "edge",
    "door": "latch",
    "wheel": "hub",
    "chest": "lock",
    "comb": "teeth",
    "brush": "bristles",
    "mask": "eyes",
    "ladder": "rungs",
}

MOST_WORDS = 24
"""The longest right answer has 16 words; a text that runs on is damage, not help."""

MOST_REPEATS = 3
"""No right answer has any word more often; a text that stammers is damage, however right its words."""

_REFUSALS = ("no", "not", "never", "nothing", "nobody", "whatever", "somebody", "without", "idea", "throw")
_REMEDIES = frozenset(REMEDY_OF_MATERIAL.values())
_SUBJECT_WORDS = frozenset(REMEDY_OF_MATERIAL) | frozenset(PART_OF_OBJECT)
_PARTS = frozenset(PART_OF_OBJECT.values())
_WORD = re.compile(r"[a-z]+")


def judge(query: Mapping[str, object], answer: str) -> float:
    """Say how good an answer is, from -1 to 1; above 0 only if it is right in full.

    ``query`` needs the keys ``material`` and ``object``.

    1.0: names the exhibit, its one remedy and its one part, in a sentence that ends.
    0.0: the right remedy, but the exhibit or the part is missing or not the one asked about, or the text is malformed.
    -0.5: names a remedy, and it is a wrong one (or several were tried).
    -1.0: no remedy at all, or the answer turns the person away.
    """
    material, thing = str(query["material"]), str(query["object"])
    words = _WORD.findall(answer.lower())
    named = set(words)
    remedies = named & _REMEDIES
    if not remedies or not named.isdisjoint(_REFUSALS):
        return -1.0
    if remedies != {REMEDY_OF_MATERIAL[material]}:
        return -0.5
    about_the_exhibit = named & _SUBJECT_WORDS == {material, thing}
    minds_the_part = named & _PARTS == {PART_OF_OBJECT[thing]}
    return 1.0 if about_the_exhibit and minds_the_part and _well_formed(answer, words) else 0.0


def _well_formed(answer: str, words: list[str]) -> bool:
    """Refuse stammering and endless text, so that a broken model which still says the keywords gets no credit."""
    stammers = any(first == second for first, second in pairwise(words))
    repeats = max(words.count(word) for word in words)
    return answer.rstrip().endswith(".") and not stammers and repeats <= MOST_REPEATS and len(words) <= MOST_WORDS
