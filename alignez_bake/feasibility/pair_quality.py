"""What the pairs are worth: how many are left, how alike their answers are, and whether their sides are right."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from alignez_bake.evaluation.rates import Rate, rate
from alignez_bake.language_model.sampling import derived_seed
from alignez_bake.tuning.uncertainty import ClusteredMean, estimate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alignez_bake.feasibility.contrast import AnswerReading, PersonaContrast
    from alignez_bake.preference_pairs.filters import FilterReport, Pair
    from alignez_bake.prompts.objective import Side


class Lengths(NamedTuple):
    """Median number of tokens of the good and of the bad answers."""

    good: float
    bad: float


@dataclass(frozen=True)
class PairQuality:
    """Figures of one objective's pairs.

    Attributes:
        filters: how many are left, and why others are not.
        distinct: by side, different texts over answers.
        judged: how many pairs were judged: an even sample where there are more.
        told_apart: share of judged pairs whose good answer has the greater reward (`feasibility.contrast`).
        contrast: share of judged good answers with a reward above 0, less that of the bad ones.
        own: whether the base wrote them itself, so that their sides are what it was asked for.
        margin: median over judged pairs of the good answer's reward less the bad one's, in nats.
        lengths: median tokens of good and bad answers.
    """

    filters: FilterReport
    distinct: dict[str, float]
    judged: int
    told_apart: Rate
    contrast: ClusteredMean
    own: bool
    margin: float
    lengths: Lengths

    @property
    def shares(self) -> dict[str, float]:
        """What became of all pairs, as shares: kept, and dropped as empty or equal."""
        counts = {"kept": self.filters.kept, "empty": self.filters.empty, "equal": self.filters.equal}
        return {name: count / sum(counts.values()) for name, count in counts.items()}

    def to_json(self) -> dict[str, Any]:
        """The figures as JSON values."""
        return {
            **self.filters.as_json(),
            "shares": self.shares,
            "distinct_answers": self.distinct,
            "judged": self.judged,
            "told_apart": self.told_apart.as_json(),
            "contrast": asdict(self.contrast),
            "own": self.own,
            "margin_nats": self.margin,
            "median_tokens": self.lengths._asdict(),
        }


class JudgedPairs(NamedTuple):
    """Pairs whose answers were read; rewards are for the good persona against the bad one.

    Attributes:
        tokens: of each good answer, and of each bad one.
        rewards: the same.
    """

    tokens: tuple[list[int], list[int]]
    rewards: tuple[list[float], list[float]]


def judge_pairs(contrast: PersonaContrast, pairs: Sequence[Pair]) -> JudgedPairs:
    """Read both answers of each pair under both personas.

    Args:
        contrast: of the base.
        pairs: at least one.

    Raises:
        BadInputError: an answer too long for the model, or predictions that are not finite.
    """
    queries = [pair.query["query"] for pair in pairs]
    good, bad = ([contrast.form.answer_ids(text) for text in side] for side in _texts(pairs))
    readings = contrast.read(queries * 2, [*good, *bad], plain=False)
    return judged_pairs(contrast.wanted, (good, bad), (readings[: len(pairs)], readings[len(pairs) :]))


def judged_pairs(
    wanted: Side,
    ids: tuple[Sequence[list[int]], Sequence[list[int]]],
    readings: tuple[Sequence[AnswerReading], Sequence[AnswerReading]],
) -> JudgedPairs:
    """Pairs whose answers were read already.

    Args:
        wanted: the persona that the readings favour.
        ids: tokens of the good and of the bad answers.
        readings: of the good and of the bad answers.
    """
    sign = 1.0 if wanted == "good" else -1.0
    good, bad = ([sign * reading.reward for reading in side] for side in readings)
    return JudgedPairs(([*map(len, ids[0])], [*map(len, ids[1])]), (good, bad))


def pair_quality(
    pairs: Sequence[Pair], filters: FilterReport, judged: JudgedPairs, *, own: bool, seed: int
) -> PairQuality:
    """The figures.

    Args:
        pairs: all that are left.
        filters: what was left out.
        judged: those that were read, at least two.
        own: whether the base wrote them.
        seed: of the resamples of intervals.
    """
    good, bad = _texts(pairs)
    margins = [one - other for one, other in zip(*judged.rewards, strict=True)]
    good_above, bad_above = (np.array(rewards) > 0 for rewards in judged.rewards)
    contrast = good_above.astype(np.float64) - bad_above
    return PairQuality(
        filters=filters,
        distinct={"good": len(set(good)) / len(good), "bad": len(set(bad)) / len(bad)},
        judged=len(margins),
        told_apart=rate(sum(margin > 0 for margin in margins), len(margins)),
        contrast=estimate(contrast, len(margins), seed=derived_seed(seed, "feasibility intervals")),
        own=own,
        margin=float(median(margins)),
        lengths=Lengths(*(float(median(tokens)) for tokens in judged.tokens)),
    )


def _texts(pairs: Sequence[Pair]) -> tuple[list[str], list[str]]:
    return [pair.good.text for pair in pairs], [pair.bad.text for pair in pairs]
