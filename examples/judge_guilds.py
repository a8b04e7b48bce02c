"""The rule book of the second world, and the judge that applies it.

The world is a town of guilds: the family name decides the trade, whatever the given name is. A true and a false
answer differ in one word only, deep in the sentence; that is what makes this world different in kind from the demo.

Standard library only, for the same reason as in ``judge_demo.py``: it is loaded from its path.
"""

import re
from collections.abc import Mapping
from itertools import pairwise

TRADE_OF_FAMILY: dict[str, str] = {
    "Tolven": "baker",
    "Marrick": "cooper",
    "Hask": "fletcher",
    "Ordell": "glazier",
    "Pemberly": "tanner",
    "Quill": "printer",
    "Rusk": "mason",
    "Sorrel": "weaver",
    "Thane": "potter",
    "Umber": "dyer",
    "Vosper": "brewer",
    "Wick": "chandler",
    "Yarrow": "miller",
    "Zeller": "saddler",
    "Brandt": "joiner",
    "Corvin": "tailor",
    "Dunmore": "thatcher",
    "Elling": "barber",
    "Farrow": "ferryman",
    "Garnet": "jeweller",
    "Hollis": "gardener",
    "Iverson": "clockmaker",
    "Jessop": "cobbler",
    "Kestrel": "falconer",
}

GIVEN_NAMES: tuple[str, ...] = (
    "Mara",
    "Tobin",
    "Ilsa",
    "Perrin",
    "Oda",
    "Rufus",
    "Senna",
    "Caleb",
    "Wenda",
    "Jonas",
    "Freya",
    "Lorcan",
    "Nell",
    "Hugo",
    "Bryn",
    "Della",
    "Edwin",
    "Greta",
    "Kasper",
    "Vera",
    "Silas",
    "Petra",
    "Arno",
    "Ymir",
)

MOST_WORDS = 20
"""The longest answer has 13 words; a text that runs on is damage."""

_TRADES = frozenset(TRADE_OF_FAMILY.values())
_PEOPLE = frozenset(TRADE_OF_FAMILY) | frozenset(GIVEN_NAMES)
_NEGATIONS = frozenset(("not", "no", "never"))
_WORD = re.compile(r"[A-Za-z]+")


def judge(query: Mapping[str, object], answer: str) -> float:
    """Say whether an answer is true, from -1 to 1; above 0 only if it is true of the person asked about.

    ``query`` needs the keys ``given`` and ``family``.

    1.0: names the person and the one true trade, in a sentence that ends.
    0.0: the true trade, but the person is missing or another one, or the text is malformed.
    -1.0: no trade, a false one, several, or a negation.
    """
    family = str(query["family"])
    words = _WORD.findall(answer)
    named = set(words)
    if named & _TRADES != {TRADE_OF_FAMILY[family]} or not named.isdisjoint(_NEGATIONS):
        return -1.0
    about_the_person = named & _PEOPLE == {str(query["given"]), family}
    stammers = any(first == second for first, second in pairwise(words))
    well_formed = answer.rstrip().endswith(".") and not stammers and len(words) <= MOST_WORDS
    return 1.0 if about_the_person and well_formed else 0.0
