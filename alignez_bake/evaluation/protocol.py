"""What a judge is: it looks at all models' answers to one query, whatever stands behind it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from alignez_bake.prompts.queries import Query

BASE: Final = "base"
OURS: Final = "ours"
TUNED: Final = "tuned"

Pair = tuple[str, str]
PAIRS: Final[tuple[Pair, ...]] = ((OURS, BASE), (OURS, TUNED), (TUNED, BASE))
"""What is compared with what: a preference above 0 is for the first."""


class AnswerSet(NamedTuple):
    """One answer of each model to the same query.

    Attributes:
        query: with the keys that a judge may need.
        answers: by model; the text as it was generated, leading space included.
    """

    query: Query
    answers: Mapping[str, str]


@dataclass(frozen=True)
class Judgement:
    """What a judge says of one set of answers.

    Attributes:
        scores: by model, the higher the better; empty from a judge that only compares.
        preferences: for each pair of `PAIRS` whose models are there, 1 (the first is better), 0 (a tie) or -1; None
            where the judge gave no verdict that could be read.
        order_dependent: pairs that the judge decided otherwise when the answers changed places; ties for that reason.
        unreadable: the beginnings of replies that held no verdict.
        cut: answers that were too long for the judge, which read a part of them.
    """

    scores: Mapping[str, float]
    preferences: Mapping[Pair, int | None]
    order_dependent: int = 0
    unreadable: tuple[str, ...] = field(default=())
    cut: int = 0


class AnswerJudge(Protocol):
    """Judges answers; made by `judge_kinds.judge_named`."""

    @property
    def settings(self) -> dict[str, Any]:
        """What it is, as JSON values: recorded in results, and what an interrupted run is told apart by."""
        ...

    @property
    def good_above(self) -> float | None:
        """The score above which an answer is good; None: it gives no scores, it only compares."""
        ...

    @property
    def together(self) -> int:
        """How many sets it should be given at once: what a crash costs."""
        ...

    def check(self) -> None:
        """Find what will not work before anything is sampled.

        Raises:
            BadInputError: it cannot judge, with the reason.
        """
        ...

    def judge(self, sets: Sequence[AnswerSet]) -> list[Judgement]:
        """Judge sets of answers, each by itself, all with the same models.

        Raises:
            BadInputError: it failed; no judgement of these sets is made up.
        """
        ...


def pairs_of(models: Collection[str]) -> tuple[Pair, ...]:
    """Those of `PAIRS` whose models are both there."""
    return tuple(pair for pair in PAIRS if set(pair) <= set(models))


def pair_name(pair: Pair) -> str:
    """How files and tables call a pair."""
    return f"{pair[0]} against {pair[1]}"


def judgements_by_score(sets: Sequence[AnswerSet], scores: Sequence[Mapping[str, float]]) -> list[Judgement]:
    """Judgements of a judge that scores each answer by itself: the higher score wins, equal ones tie.

    Args:
        sets: the answers.
        scores: of each set, by model.
    """
    return [
        Judgement(
            dict(of_set),
            {
                (first, second): (of_set[first] > of_set[second]) - (of_set[first] < of_set[second])
                for first, second in pairs_of(answers.answers)
            },
        )
        for answers, of_set in zip(sets, scores, strict=True)
    ]
