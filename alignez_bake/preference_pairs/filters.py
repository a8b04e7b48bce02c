"""Which answers become pairs: a good and a bad one to the same query, both of use.

The cosine filter of AlignEZ v2 looks at activations and belongs to that method.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, NamedTuple

from alignez_bake.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from alignez_bake.preference_pairs.records import PairRecord
    from alignez_bake.prompts.objective import Side
    from alignez_bake.prompts.queries import Query

MIN_PAIRS = 8


class Answer(NamedTuple):
    """One side of a pair: the answer's text, and the characteristic of its persona (empty: its own words)."""

    text: str
    characteristic: str


@dataclass(frozen=True)
class Pair:
    """A good and a bad answer to the same query."""

    query: Query
    objective: str
    good: Answer
    bad: Answer


@dataclass(frozen=True)
class FilterReport:
    """How many pairs are left, and why others are not.

    Attributes:
        kept: pairs that are left.
        empty: pairs dropped because an answer is empty or white space.
        equal: pairs dropped because both answers are the same text, white space at the ends aside.
        without_partner: answers without one of the other side to the same query.
    """

    kept: int
    empty: int
    equal: int
    without_partner: int

    def as_json(self) -> dict[str, int]:
        """The counts by name."""
        return asdict(self)

    def __str__(self) -> str:
        """The counts as half a sentence."""
        return (
            f"{self.kept} pairs kept; dropped: {self.empty} with an empty answer, {self.equal} with equal answers, "
            f"{self.without_partner} answers without a partner"
        )


def match_pairs(
    records: Iterable[PairRecord], objective: str, *, min_pairs: int = MIN_PAIRS
) -> tuple[list[Pair], FilterReport]:
    """Match the good and bad answers of one objective, and drop what teaches nothing (AlignEZ, step 1).

    Several answers of one side to the same query are matched in order: the first good with the first bad one.

    Args:
        records: of any objectives.
        objective: which one counts.
        min_pairs: fewer are an error.

    Returns:
        The pairs, in order of each query's first appearance, and the counts.

    Raises:
        BadInputError: fewer than `min_pairs` are left; the message has the counts.
    """
    by_query: dict[str, dict[Side, list[PairRecord]]] = defaultdict(lambda: {"good": [], "bad": []})
    for record in records:
        if record.objective == objective:
            by_query[record.query["query"]][record.side].append(record)
    pairs: list[Pair] = []
    empty = equal = without_partner = 0
    for sides in by_query.values():
        without_partner += abs(len(sides["good"]) - len(sides["bad"]))
        for good, bad in zip(sides["good"], sides["bad"], strict=False):
            if not good.answer.strip() or not bad.answer.strip():
                empty += 1
            elif good.answer.strip() == bad.answer.strip():
                equal += 1
            else:
                pairs.append(Pair(good.query, objective, _answer(good), _answer(bad)))
    report = FilterReport(len(pairs), empty, equal, without_partner)
    if len(pairs) < min_pairs:
        raise BadInputError(
            f"too few pairs for objective {objective!r}: {report}; at least {min_pairs} are needed: give more "
            "queries, or a base that answers them"
        )
    return pairs, report


def _answer(record: PairRecord) -> Answer:
    return Answer(record.answer, record.characteristic)
