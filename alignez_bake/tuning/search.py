"""Successive halving over candidates, and the choice among those that are left.

The first round gives every candidate a few answers. Then the best of them within the budget gets others beside it,
which differ from it in a setting and answer as much: coarse to fine. After this, and after every further round,
which gives those that are left more answers, the better half by self-judged rate is kept, at least two, of equal ones
the gentler. All answer the same queries with the same random numbers, and the answers of a round begin with those of
the round before, so that none is made twice. The base takes part to the end as the candidate without edits.

After the first round the drift on neutral texts is measured, best rate first, until enough candidates are found that
keep within the budget: one to look beside, then all that are kept. So a candidate that is above it never takes the
place of one that is not.

The last choice, among the candidates of the last round:

    1. With b the best rate and d_i the paired differences b - c over answers i, a candidate c is as good as the best
       if mean(d) is at most one standard error of mean(d), clustered by query.
    2. Of those whose gain over the base is above 0 at 95 %, the gentlest is chosen, which is the one with the least
       drift. Drifts that differ by less than a tenth of the budget count as equal, as so small a part of what is
       allowed is no reason, and of equal ones the better rated is chosen. The interval of the gain is paired, over
       queries, and holds for all candidates at once, since of many that do nothing one is lucky: without that, of 16
       such ones some would be chosen in every sixth search.
    3. If there is none, nothing is chosen, and the result says so.

The rule of one standard error (Breiman et al., Classification and Regression Trees, 1984, section 3.4.3) keeps noise
from choosing a stronger edit than the data asks for. The chosen one's own rate is still that of a winner: its interval
knows of the queries, not of the choice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import numpy as np

from alignez_bake.edit_plan import EditPlan
from alignez_bake.errors import BadInputError
from alignez_bake.language_model.sampling import derived_seed
from alignez_bake.tuning.frontier import BASE_NAME, FrontierPoint, TuningResult
from alignez_bake.tuning.uncertainty import ClusteredMean, estimate, standard_error

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from alignez_bake.progress import Progress
    from alignez_bake.tuning.candidate import Candidate, Planned
    from alignez_bake.tuning.state import TuningState

ROUNDS: Final = (24, 48, 96)
"""The default search then takes less than twice what its pairs and their activations take. A rate of 0.9 has
a standard error of 0.03 in the last choice; a paired difference of two such rates often less."""
_FEWEST_KEPT: Final = 2
_SAME_DRIFT: Final = 0.1
_NO_EDITS: Final = EditPlan(())


def round_name(number: int) -> str:
    """The task that progress is told of, of a round from 1 on."""
    return f"tuning, round {number}"


class AnswerValues(Protocol):
    """The values of a model's answers; `JudgedSampling` is the one that runs a model."""

    def __call__(self, plan: EditPlan, answers: range) -> Sequence[float]:
        """Values within [0, 1] of the answers of these numbers, the same whenever they are asked for."""


@dataclass(frozen=True)
class SearchSettings:
    """What a search is allowed.

    Attributes:
        queries: number of held-out queries; answer k is to query k modulo this.
        kl_budget: most drift of a candidate, in nats per token.
        seed: of the resamples of intervals.
        rounds: answers of each candidate up to the end of each round.
    """

    queries: int
    kl_budget: float
    seed: int
    rounds: tuple[int, ...] = ROUNDS

    def __post_init__(self) -> None:
        """Refuse what no search can do.

        Raises:
            BadInputError: a budget that is no positive number, rounds that do not grow, or so few queries or answers
                that nothing has a standard error.
        """
        if not (math.isfinite(self.kl_budget) and self.kl_budget > 0):
            raise BadInputError(f"KL budget {self.kl_budget} must be a finite number of nats per token above 0")
        if self.queries < 2:
            raise BadInputError(f"{self.queries} held-out queries are too few to compare edits: give at least 2")
        if not self.rounds or self.rounds[0] < 2 or list(self.rounds) != sorted(set(self.rounds)):
            raise BadInputError(f"rounds of {self.rounds} answers must grow from at least 2")


@dataclass
class _Standing:
    """A candidate as far as it came; without one: the base."""

    candidate: Candidate | None
    plan: EditPlan | None
    out: str | None
    values: list[float] = field(default_factory=list)
    kl: float | None = None

    @property
    def name(self) -> str:
        return BASE_NAME if self.candidate is None else self.candidate.name

    @property
    def array(self) -> NDArray[np.float64]:
        return np.asarray(self.values, dtype=np.float64)

    @property
    def rate(self) -> float:
        return float(self.array.mean())


class _Choice(NamedTuple):
    name: str | None
    reason: str
    gain: ClusteredMean | None


def search(
    planned: Sequence[Planned],
    answer_values: AnswerValues,
    drift: Callable[[EditPlan], float],
    settings: SearchSettings,
    state: TuningState,
    *,
    beside: Callable[[Candidate], Sequence[Planned]],
    floors: Mapping[str, float],
    progress: Progress,
) -> TuningResult:
    """Find the candidate to use.

    Args:
        planned: the candidates, with plans or with reasons why they have none. Of equal ones the earlier is kept.
        answer_values: of the base and of every candidate.
        drift: KL(base || edited) on neutral texts, in nats per token; may be NaN.
        settings: of the search.
        state: what is measured goes through it, so that an interrupted search goes on.
        beside: finer candidates, of the best one after the first round.
        floors: for the result.
        progress: counts answers of each round, and candidates whose drift is measured.

    Raises:
        BadInputError: what `answer_values`, `drift` and `state` refuse.
    """
    base = _Standing(None, _NO_EDITS, None, kl=0.0)
    entrants = [_Standing(each.candidate, each.plan, each.reason) for each in planned]
    left = [entrant for entrant in entrants if entrant.plan is not None]
    for number, last in enumerate(settings.rounds, start=1):

        def answered(standings: Sequence[_Standing], description: str, last: int = last) -> None:
            _answer(
                standings, last, answer_values=answer_values, state=state, progress=progress, description=description
            )

        answered([base, *left], round_name(number))
        if number == 1 and (best := _best_allowed(left, drift, settings, state)) is not None:
            assert best.candidate is not None
            finer = [_Standing(each.candidate, each.plan, each.reason) for each in beside(best.candidate)]
            entrants += finer
            more = [entrant for entrant in finer if entrant.plan is not None]
            answered(more, "tuning, finer settings")
            left += more
        if number < len(settings.rounds) or number == 1:
            left = _kept(left, drift, settings, state, progress, final=number == len(settings.rounds))
    choice = _choose(base, left, settings, among=sum(entrant.plan is not None for entrant in entrants))
    return TuningResult(
        points=tuple(_point(standing, settings) for standing in (base, *entrants)),
        chosen=choice.name,
        reason=choice.reason,
        gain=choice.gain,
        kl_budget=settings.kl_budget,
        queries=settings.queries,
        floors=dict(floors),
    )


def _answer(
    standings: Sequence[_Standing],
    last: int,
    *,
    answer_values: AnswerValues,
    state: TuningState,
    progress: Progress,
    description: str,
) -> None:
    """Bring every standing to `last` answers."""
    if not standings:
        return
    first = len(standings[0].values)
    answers = range(first, last)
    with progress.task(description, len(standings) * len(answers)) as advance:
        for standing in standings:
            assert standing.plan is not None
            standing.values += state.numbers(
                {"kind": "answers", "candidate": standing.name, "first": first, "last": last},
                len(answers),
                partial(answer_values, standing.plan, answers),
            )
            advance(len(answers))


def _best_allowed(
    left: Sequence[_Standing], drift: Callable[[EditPlan], float], settings: SearchSettings, state: TuningState
) -> _Standing | None:
    """The best of those within the budget; if none is, the gentlest: something beside it may be."""
    for standing in sorted(left, key=_rate_of, reverse=True):
        if _over_budget(standing, drift, settings.kl_budget, state) is None:
            return standing
    measured = [standing for standing in left if standing.kl is not None]
    return min(measured, key=_drift_of, default=None)


def _kept(
    left: Sequence[_Standing],
    drift: Callable[[EditPlan], float],
    settings: SearchSettings,
    state: TuningState,
    progress: Progress,
    *,
    final: bool,
) -> list[_Standing]:
    """The better half, all within the budget; of the others it is noted why they are out. After the last round: all."""
    most = len(left) if final else max(math.ceil(len(left) / 2), _FEWEST_KEPT)
    kept: list[_Standing] = []
    with progress.task("measuring drift", len(left)) as advance:
        for rate, equal in groupby(sorted(left, key=_rate_of, reverse=True), key=_rate_of):
            tied = list(equal)
            if len(kept) < most:
                for standing in tied:
                    standing.out = _over_budget(standing, drift, settings.kl_budget, state)
                allowed = sorted((one for one in tied if one.out is None), key=_drift_of)
            else:
                allowed = tied
            room = most - len(kept)
            kept += allowed[:room]
            why = "is shared by gentler ones among the" if room else "is not among the"
            for standing in allowed[room:]:
                standing.out = f"its rate of {rate:.3f} after {len(standing.values)} answers {why} best {most}"
            advance(len(tied))
    return kept


def _rate_of(standing: _Standing) -> float:
    return standing.rate


def _over_budget(
    standing: _Standing, drift: Callable[[EditPlan], float], budget: float, state: TuningState
) -> str | None:
    """Why a candidate moves neutral texts too far; None if it does not. Measured once."""
    if standing.kl is None:
        assert standing.plan is not None
        standing.kl = state.number({"kind": "kl", "candidate": standing.name}, partial(drift, standing.plan))
    if standing.kl is None:
        return "its predictions on neutral texts are not finite"
    if standing.kl > budget:
        return f"it moves neutral texts by {standing.kl:.4f} nats per token, above the budget of {budget:g}"
    return None


def _choose(base: _Standing, finalists: Sequence[_Standing], settings: SearchSettings, *, among: int) -> _Choice:
    """The last choice of the module docstring."""
    if not finalists:
        return _Choice(None, f"no candidate gave edits within the KL budget of {settings.kl_budget:g}", None)
    best = max(finalists, key=lambda standing: (standing.rate, -_drift_of(standing)))
    answers = f"{len(base.values)} answers"
    as_good = [one for one in finalists if _as_good(one, best, settings.queries)]
    gains = {one.name: gain for one in as_good if (gain := _gain(one, base, settings, among)).low > 0}
    if better := [one for one in as_good if one.name in gains]:
        least = min(map(_drift_of, better))
        gentle = [one for one in better if _drift_of(one) <= least + _SAME_DRIFT * settings.kl_budget]
        chosen = max(gentle, key=lambda one: (one.rate, -_drift_of(one)))
        of_these = "the gentlest" if _drift_of(chosen) == least else "the best of those that are about as gentle as any"
        reason = (
            f"{chosen.name} is judged good at {chosen.rate:.3f} of {answers}, the base at {base.rate:.3f}; of the "
            f"{len(as_good)} within one standard error of the best ({best.name}, {best.rate:.3f}) that are better than "
            f"the base it is {of_these}, with a KL of {_drift_of(chosen):.4f} nats per token"
        )
        return _Choice(chosen.name, reason, gains[chosen.name])
    gain = _gain(best, base, settings, among)
    reason = (
        f"the best candidate, {best.name}, is judged good at {best.rate:.3f} of {answers}, the base at "
        f"{base.rate:.3f}: the gain of {gain.value:.3f} (95 % interval {gain.low:.3f} to {gain.high:.3f}, "
        f"for any of {among} candidates) is not above 0"
    )
    return _Choice(None, reason, gain)


def _as_good(standing: _Standing, best: _Standing, queries: int) -> bool:
    differences = best.array - standing.array
    return float(differences.mean()) <= standard_error(differences, queries)


def _gain(standing: _Standing, base: _Standing, settings: SearchSettings, among: int) -> ClusteredMean:
    seed = derived_seed(settings.seed, "bootstrap")
    return estimate(standing.array - base.array, settings.queries, seed=seed, among=among)


def _drift_of(standing: _Standing) -> float:
    assert standing.kl is not None
    return standing.kl


def _point(standing: _Standing, settings: SearchSettings) -> FrontierPoint:
    candidate = standing.candidate
    seed = derived_seed(settings.seed, "bootstrap")
    return FrontierPoint(
        candidate=standing.name,
        method="" if candidate is None else candidate.method.name,
        settings={} if candidate is None else candidate.settings_json,
        rate=estimate(standing.array, settings.queries, seed=seed) if standing.values else None,
        kl=standing.kl,
        answers=len(standing.values),
        out=standing.out,
    )
