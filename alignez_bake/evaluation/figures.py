"""From judgements to figures: rates, scores, wins and losses, and how much of the gap is closed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from alignez_bake.errors import BadInputError
from alignez_bake.evaluation.bootstrap import QueryBootstrap
from alignez_bake.evaluation.protocol import BASE, OURS, TUNED, pair_name, pairs_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from alignez_bake.evaluation.bootstrap import Gap
    from alignez_bake.evaluation.protocol import Judgement, Pair
    from alignez_bake.evaluation.query_draws import Estimate


@dataclass(frozen=True)
class ModelFigures:
    """How good a model's answers are.

    Attributes:
        good_rate: share of answers with a score above the judge's threshold, in [0, 1].
        mean_score: in the judge's own unit.
    """

    good_rate: Estimate
    mean_score: Estimate

    def as_json(self) -> dict[str, Any]:
        """Both."""
        return {"good_rate": self.good_rate.as_json(), "mean_score": self.mean_score.as_json()}


@dataclass(frozen=True)
class PairFigures:
    """How one model's answers compare with another's, answer by answer.

    Attributes:
        wins: of the first model.
        ties: of equal worth, or decided by their order alone.
        losses: of the first model.
        unjudged: without a verdict that could be read; they count nowhere else.
        net_win: wins less losses, in per cent of what was judged (the metric of AlignEZ, arXiv 2406.03642); None
            where nothing was.
    """

    wins: int
    ties: int
    losses: int
    unjudged: int
    net_win: Estimate | None

    def as_json(self) -> dict[str, Any]:
        """Counts and the net win."""
        return {
            "wins": self.wins,
            "ties": self.ties,
            "losses": self.losses,
            "unjudged": self.unjudged,
            "net_win": None if self.net_win is None else self.net_win.as_json(),
        }


@dataclass(frozen=True)
class Figures:
    """All that a judge's word comes to.

    Attributes:
        models: by name; empty where the judge only compares.
        pairs: what was compared.
        gap: how much of the gap from base to tuned is closed; None without a tuned model.
        gap_of: what it is the gap of, "good_rate", or "net_win" over the base where the judge only compares.
        order_dependent: comparisons that the judge decided otherwise when the answers changed places.
        unreadable: the beginnings of replies without a verdict.
        cut: answers that the judge read in part.
    """

    models: dict[str, ModelFigures]
    pairs: dict[Pair, PairFigures]
    gap: Gap | None
    gap_of: str
    order_dependent: int
    unreadable: tuple[str, ...]
    cut: int

    def as_json(self) -> dict[str, Any]:
        """Everything, with at most some unreadable replies as examples."""
        return {
            "models": {name: entry.as_json() for name, entry in self.models.items()},
            "pairs": {pair_name(pair): entry.as_json() for pair, entry in self.pairs.items()},
            "gap_closed": None if self.gap is None else {"of": self.gap_of, **self.gap.as_json()},
            "order_dependent_comparisons": self.order_dependent,
            "unreadable_replies": len(self.unreadable),
            "unreadable_examples": list(dict.fromkeys(self.unreadable))[:5],
            "answers_cut_for_the_judge": self.cut,
        }


def figures(
    judgements: Sequence[Judgement], models: Sequence[str], *, samples: int, good_above: float | None, seed: int
) -> Figures:
    """The figures of all judgements, with intervals by `QueryBootstrap`.

    Args:
        judgements: by query, then by sample.
        models: names of `protocol`.
        samples: of each query.
        good_above: the judge's threshold; None where it only compares.
        seed: of the bootstrap.

    Raises:
        BadInputError: not one verdict could be read: there is nothing to report.
    """
    assert judgements
    assert len(judgements) % samples == 0
    bootstrap = QueryBootstrap(len(judgements) // samples, seed)

    def array(value: Callable[[Judgement], float | None]) -> NDArray[np.float64]:
        found = [value(judgement) for judgement in judgements]
        return np.array([math.nan if entry is None else entry for entry in found], np.float64).reshape(-1, samples)

    unreadable = tuple(text for judgement in judgements for text in judgement.unreadable)
    preferences = {
        pair: array(lambda judgement, pair=pair: judgement.preferences[pair])  # type: ignore[misc]
        for pair in pairs_of(models)
    }
    if all(np.isnan(values).all() for values in preferences.values()):
        raise BadInputError(
            f"not one of {len(unreadable)} replies of the judge is a letter, the first is {unreadable[0]}: use another "
            "judge, or another --judge-model"
        )
    scores: dict[str, NDArray[np.float64]] = {}
    if good_above is not None:
        scores = {model: array(lambda judgement, model=model: judgement.scores[model]) for model in models}  # type: ignore[misc]
    good = {model: values > good_above for model, values in scores.items() if good_above is not None}
    return Figures(
        {model: _of_model(bootstrap, values, good[model]) for model, values in scores.items()},
        {pair: _of_pair(bootstrap, values) for pair, values in preferences.items()},
        None if TUNED not in models else _gap(bootstrap, good, preferences),
        "good_rate" if scores else "net_win",
        sum(judgement.order_dependent for judgement in judgements),
        unreadable,
        sum(judgement.cut for judgement in judgements),
    )


def _of_model(bootstrap: QueryBootstrap, scores: NDArray[np.float64], good: NDArray[np.bool_]) -> ModelFigures:
    mean = bootstrap.mean(scores)
    assert mean is not None
    return ModelFigures(bootstrap.share(good), mean)


def _of_pair(bootstrap: QueryBootstrap, preferences: NDArray[np.float64]) -> PairFigures:
    wins, ties, losses = (int((preferences == value).sum()) for value in (1, 0, -1))
    net = bootstrap.mean(preferences)
    return PairFigures(wins, ties, losses, int(np.isnan(preferences).sum()), None if net is None else net.times(100))


def _gap(
    bootstrap: QueryBootstrap, good: dict[str, NDArray[np.bool_]], preferences: dict[Pair, NDArray[np.float64]]
) -> Gap:
    """Of rates; or of net wins over the base, whose own is 0, where there are no scores."""
    if good:
        return bootstrap.gap(*(good[model].astype(np.float64) for model in (BASE, OURS, TUNED)))
    ours, tuned = preferences[OURS, BASE], preferences[TUNED, BASE]
    return bootstrap.gap(np.zeros_like(ours), ours, tuned)
