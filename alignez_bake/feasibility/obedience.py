"""Does the base follow its personas, and what is left for an edit to do?

An answer y counts as the wanted persona's if its reward r (`feasibility.contrast`) is above 0; an empty one counts
for neither persona. Let W, O and P be the shares of answers that count so, among answers given under the wanted
persona, under the other one, and under none.

    contrast   W - O     how well the base's answers under its personas can be told apart by its own likelihoods
    room       W - P     what imitation gains: the rate that the persona reaches when it is asked, less the rate unasked
    gain       S - P     what contrastive decoding gains, the tool's default

S follows from W and O. Contrastive decoding (`methods.contrastive_decoding`, (1)) aims at p* ∝ p_w^s (p_w / p_o)^(s-1).
With answers of two kinds alone, those that count as the wanted persona's and the others, p_w and p_o are W and O, and

    logit S = (2 s - 1) logit W - (s - 1) logit O

In a model it is tokens that are sharpened and not kinds of answers, so this is what to expect and no bound. W and O
enter as (k + ½) / (n + 1), k of n answers (Jeffreys' prior), since the logit of a rate of 1 is infinite. The interval
is that of the values S + ∂S/∂W (w_i - W) + ∂S/∂O (o_i - O) - p_i of answers i, whose mean is S - P (the delta method).

{r > 0} is the likelihood ratio test of one persona against the other, so of answers sampled under the very sentences
that judge, W - O is their total variation TV(w, o), to which no judge whatever can add: for every set A of answers
p(A | w) - p(A | o) <= TV(w, o) (Neyman and Pearson, 1933). It also means that such a base judges itself: W - O is
never below 0 there, and at 0 only where the personas say the same.

    reach      TV(w, none) = E_{y ~ w} max(0, 1 - e^{-l}) = E_{y ~ none} max(0, 1 - e^{l})          l: the lead

bounds the room, but not the gain beyond it, in the eyes of every judge, by rule, human or model: imitating the persona
cannot change the share of answers that any of them likes by more. The values under the expectation lie within [0, 1]
and are near 0 where the persona hardly matters, so that a small reach is known well from few answers. Its upper bound
is the empirical Bernstein bound (Maurer and Pontil, COLT 2009, theorem 4), with n means over a query and V their sample
variance,

    mean + sqrt(2 V ln(2 / δ) / n) + 7 ln(2 / δ) / (3 (n - 1)),      δ = 0.05

which holds for every n and every distribution of values within [0, 1].
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from alignez_bake.evaluation.rates import Rate, rate
from alignez_bake.language_model.sampling import derived_seed
from alignez_bake.tuning.coupled_sampling import coupled_sample
from alignez_bake.tuning.uncertainty import ClusteredMean, estimate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from alignez_bake.feasibility.contrast import AnswerReading, PersonaContrast
    from alignez_bake.prompts.objective import Side

    Float64Array = NDArray[np.float64]

ANSWERS: Final = 100
"""Under each persona and under none. A rate of one half then has a standard error of 0.05."""
SHARPENING: Final = 1.5
"""s of the gain: the strength that the choice tries first (`tuning.offered.LADDER`)."""
_DELTA: Final = 0.05


class UpperBound(NamedTuple):
    """A mean of values within [0, 1], and what it is at most with 95 %."""

    value: float
    high: float


@dataclass(frozen=True)
class Obedience:
    """What became of answers under each persona and under none.

    Attributes:
        wanted: share of answers under the wanted persona that count as its own: W.
        other: share of answers under the other persona that count as that one's own.
        plain: share of answers under no persona that count as the wanted one's: P.
        contrast: W - O, over queries.
        room: W - P, over queries.
        gain: S - P, over queries.
        reach: TV(w, none); None where answers were not sampled under the sentences that judge.
        reward: mean r of the answers under the wanted persona, and of those under the other one, in nats.
        divergence: mean JSD of the next token under both personas, over all of these answers, in nats.
        variation: the same of the total variation, within [0, 1].
        empty: empty answers among all.
        queries: that were asked.
        written_for: `personas`, if the answers were sampled under the sentences that judge; `pairs`, if they are those
            of pairs, each under a characteristic of its own.
    """

    wanted: Rate
    other: Rate
    plain: Rate
    contrast: ClusteredMean
    room: ClusteredMean
    gain: ClusteredMean
    reach: UpperBound | None
    reward: tuple[float, float]
    divergence: float
    variation: float
    empty: int
    queries: int
    written_for: str

    def to_json(self) -> dict[str, Any]:
        """The figures as JSON values."""
        return {
            "wanted": self.wanted.as_json(),
            "other": self.other.as_json(),
            "plain": self.plain.as_json(),
            "contrast": asdict(self.contrast),
            "room": asdict(self.room),
            "gain": asdict(self.gain),
            "reach": None if self.reach is None else self.reach._asdict(),
            "reward_nats": {"wanted": self.reward[0], "other": self.reward[1]},
            "divergence_nats": self.divergence,
            "variation": self.variation,
            "empty_answers": self.empty,
            "queries": self.queries,
            "written_for": self.written_for,
        }


class WrittenAnswers(NamedTuple):
    """Answers under the wanted persona, the other and none, answer k to the same query in all three.

    Attributes:
        queries: texts, answer k is to query k modulo their number.
        wanted: token ids of each, at least one.
        other: the same.
        plain: the same.
        empty: which of them are empty, in the same order; their ids are what ended them.
        written_for: as in `Obedience`.
    """

    queries: tuple[str, ...]
    wanted: tuple[list[int], ...]
    other: tuple[list[int], ...]
    plain: tuple[list[int], ...]
    empty: tuple[tuple[bool, ...], tuple[bool, ...], tuple[bool, ...]]
    written_for: str


class Sampled(NamedTuple):
    """Answers of one context each: token ids with what ended them, and which are empty."""

    ids: tuple[list[int], ...]
    empty: tuple[bool, ...]


def sampled_answers(
    contrast: PersonaContrast, queries: Sequence[str], side: Side | None, *, answers: int, seed: int, most_tokens: int
) -> Sampled:
    """Answers of the base under one persona or none; with one seed all contexts share their random numbers.

    Args:
        contrast: of the base.
        queries: texts; answer k is to query k modulo their number.
        side: the persona; None: none.
        answers: how many.
        seed: of the run.
        most_tokens: of an answer.

    Raises:
        BadInputError: a query too long for the model.
    """
    asked = [queries[number % len(queries)] for number in range(answers)]
    found = coupled_sample(
        contrast.lm,
        [contrast.context(query, side) for query in asked],
        range(answers),
        seed=derived_seed(seed, "feasibility", contrast.objective.name),
        max_new_tokens=most_tokens,
        batch_size=contrast.batch_size,
    )
    ids = tuple([*answer.ids, *([] if answer.end is None else [answer.end])] for answer in found)
    return Sampled(ids, tuple(not answer.ids for answer in found))


def answers_of_personas(
    contrast: PersonaContrast, queries: Sequence[str], *, answers: int, seed: int, most_tokens: int
) -> WrittenAnswers:
    """Answers under both personas and none, sampled with the same random numbers; arguments as `sampled_answers`."""
    sides: tuple[Side | None, ...] = (contrast.wanted, contrast.other, None)
    wanted, other, plain = (
        sampled_answers(contrast, queries, side, answers=answers, seed=seed, most_tokens=most_tokens) for side in sides
    )
    return WrittenAnswers(
        tuple(queries), wanted.ids, other.ids, plain.ids, (wanted.empty, other.empty, plain.empty), "personas"
    )


class Readings(NamedTuple):
    """Of the answers of a `WrittenAnswers`, in its order."""

    wanted: list[AnswerReading]
    other: list[AnswerReading]
    plain: list[AnswerReading]


def read_written(contrast: PersonaContrast, written: WrittenAnswers) -> Readings:
    """Read all answers under both personas, and where they were sampled under these, without one as well.

    Raises:
        BadInputError: an answer too long for the model, or predictions that are not finite.
    """
    number = len(written.wanted)
    asked = [written.queries[place % len(written.queries)] for place in range(number)]
    own = written.written_for == "personas"
    return Readings(
        contrast.read(asked, written.wanted, plain=own),
        contrast.read(asked, written.other, plain=False),
        contrast.read(asked, written.plain, plain=own),
    )


def obedience_of(written: WrittenAnswers, readings: Readings, *, seed: int) -> Obedience:
    """Count.

    Args:
        written: the answers, to at least two queries.
        readings: of them.
        seed: of the resamples of intervals.
    """
    counted = [_counted(found, empty) for found, empty in zip(readings, written.empty, strict=True)]
    others_own = [reading._replace(reward=-reading.reward) for reading in readings.other]
    queries = min(len(written.queries), len(written.wanted))
    of_intervals = derived_seed(seed, "feasibility intervals")
    both = [*readings.wanted, *readings.other]
    own = written.written_for == "personas"
    return Obedience(
        wanted=_rate(counted[0]),
        other=_rate(_counted(others_own, written.empty[1])),
        plain=_rate(counted[2]),
        contrast=estimate(counted[0] - counted[1], queries, seed=of_intervals),
        room=estimate(counted[0] - counted[2], queries, seed=of_intervals),
        gain=estimate(_sharpened(counted[0], counted[1]) - counted[2], queries, seed=of_intervals),
        reach=_reach(readings.wanted, readings.plain, queries) if own else None,
        reward=(fmean(reading.reward for reading in readings.wanted), fmean(r.reward for r in readings.other)),
        divergence=fmean(reading.divergence for reading in both),
        variation=fmean(reading.variation for reading in both),
        empty=sum(map(sum, written.empty)),
        queries=queries,
        written_for=written.written_for,
    )


def upper_bound(values: Float64Array) -> UpperBound:
    """Mean and empirical Bernstein bound, at most 1, of independent values within [0, 1].

    Args:
        values: float64 [n] with n >= 2.
    """
    number, log = len(values), math.log(2.0 / _DELTA)
    mean = float(values.mean())
    high = mean + math.sqrt(2.0 * float(values.var(ddof=1)) * log / number) + 7.0 * log / (3.0 * (number - 1))
    return UpperBound(mean, min(1.0, high))


def _sharpened(wanted: Float64Array, other: Float64Array) -> Float64Array:
    """S + ∂S/∂W (w_i - W) + ∂S/∂O (o_i - O) of answers i, of which w_i and o_i say whether they count."""
    w, o = ((counted.sum() + 0.5) / (len(counted) + 1.0) for counted in (wanted, other))
    odds = (w / (1.0 - w)) ** (2.0 * SHARPENING - 1.0) * (o / (1.0 - o)) ** (1.0 - SHARPENING)
    share = odds / (1.0 + odds)
    slope = share * (1.0 - share)
    by_wanted = slope * (2.0 * SHARPENING - 1.0) / (w * (1.0 - w))
    by_other = slope * (1.0 - SHARPENING) / (o * (1.0 - o))
    moved: Float64Array = share + by_wanted * (wanted - wanted.mean()) + by_other * (other - other.mean())
    return moved


def _reach(wanted: Sequence[AnswerReading], plain: Sequence[AnswerReading], queries: int) -> UpperBound:
    """Both forms of the expectation, averaged: of each query its mean over answers."""
    of_answer = 0.5 * (_moved(wanted, 1.0) + _moved(plain, -1.0))
    groups = np.arange(len(of_answer)) % queries
    return upper_bound(np.bincount(groups, weights=of_answer) / np.bincount(groups))


def _moved(readings: Sequence[AnswerReading], sign: float) -> Float64Array:
    """max(0, 1 - e^{∓l}) of each answer."""
    leads = np.array([reading.lead for reading in readings], dtype=np.float64)
    return -np.expm1(-np.maximum(sign * leads, 0.0))


def _counted(readings: Sequence[AnswerReading], empty: Sequence[bool]) -> Float64Array:
    return np.array(
        [float(reading.reward > 0 and not nothing) for reading, nothing in zip(readings, empty, strict=True)]
    )


def _rate(counted: Float64Array) -> Rate:
    return rate(int(counted.sum()), len(counted))
