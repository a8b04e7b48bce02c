"""The way from pairs to the edits that a search chooses: `pipeline.fit_edits`, with a choice in place of settings."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from alignez_bake.errors import BadInputError, CheckFailedError
from alignez_bake.fit_settings import FitSettings
from alignez_bake.methods.protocol import LeavesAlone
from alignez_bake.pipeline import Fitted, check_together, read_pairs_of, with_interference, with_origin
from alignez_bake.tuning.candidate import TunedObjective
from alignez_bake.tuning.neutral import split_neutral
from alignez_bake.tuning.self_judge import SelfJudge
from alignez_bake.tuning.tuner import ANSWER_TOKENS, split_queries, tune

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from alignez_bake.edit_plan import EditPlan
    from alignez_bake.language_model.loading import LanguageModel
    from alignez_bake.pipeline import Asked
    from alignez_bake.preference_pairs.records import PairRecord
    from alignez_bake.progress import Progress
    from alignez_bake.prompts.objective import Objective
    from alignez_bake.prompts.prompt_form import PromptForm
    from alignez_bake.prompts.queries import Query
    from alignez_bake.tuning.candidate import Candidate
    from alignez_bake.tuning.frontier import TuningResult
    from alignez_bake.tuning.neutral import NeutralSplit
    from alignez_bake.tuning.offered import TuneSettings
    from alignez_bake.tuning.tuner import SplitQueries


@dataclass(frozen=True)
class TunedFit:
    """What a search chose.

    Attributes:
        tuning: every candidate with its rate and its price.
        fitted: the chosen edits; None where none is better than the base.
        frontier: plans of all candidates whose price is known, by name.
    """

    tuning: TuningResult
    fitted: Fitted | None
    frontier: Mapping[str, EditPlan]

    def raise_if_nothing_helps(self) -> None:
        """Raise where nothing was chosen.

        Raises:
            CheckFailedError: with the search's own reason.
        """
        if self.fitted is None:
            raise CheckFailedError(
                f"no edit is better than the base, so none is baked: {self.tuning.reason}. `explain --feasibility` "
                "says whether this base follows its personas; a named --method bakes without a choice"
            )


def queries_to_judge(queries: Sequence[Query], weights: Mapping[str, float], seed: int) -> SplitQueries:
    """What makes pairs and what candidates answer, checked before anything runs.

    Raises:
        BadInputError: too few queries; a dial of 0, by which nothing can be judged.
    """
    for name, weight in weights.items():
        if weight == 0:
            raise BadInputError(
                f"--objective {name}=0 gives the choice of an edit nothing to judge by: leave it out, or fit with a "
                f"named --method and set {name}=0 when you bake"
            )
    return split_queries(queries, seed)


def asked_for_pairs(lm: LanguageModel, asked: Asked, split: SplitQueries, form: PromptForm) -> Asked:
    """What makes pairs, once it is sure that answers to the other queries can be judged: pairs take long.

    Raises:
        BadInputError: a held-out query that leaves no room for an answer.
    """
    held_out = [str(query["query"]) for query in split.held_out]
    for objective in asked.objectives:
        SelfJudge(lm, objective, form, batch_size=1).check_fits(held_out, ANSWER_TOKENS)
    return replace(asked, queries=tuple(split.pairs))


def tune_edits(
    lm: LanguageModel,
    records: Sequence[PairRecord],
    objectives: Sequence[Objective],
    form: PromptForm,
    settings: TuneSettings,
    *,
    held_out: Sequence[Query],
    weights: Mapping[str, float],
    batch_size: int,
    state_path: Path | None,
    progress: Progress,
) -> TunedFit:
    """Fit every candidate to the pairs, and choose by the base's own judgement of answers to other queries.

    Args:
        lm: the base, without edits.
        records: pairs of all objectives.
        objectives: whose.
        form: how queries become tokens.
        settings: what is chosen among.
        held_out: queries that made none of the pairs.
        weights: dial of each objective, not 0.
        batch_size: texts that run together.
        state_path: file of the search, by which an interrupted one goes on.
        progress: counts what is recorded, answered and measured.

    Raises:
        BadInputError: as `pipeline.fit_edits` and `tuner.tune`.
    """
    check_together(objectives, weights, joint=settings.joint)
    neutral = split_neutral(settings.neutral, form, seen=any(map(_leaves_alone, settings.candidates)))
    readings = read_pairs_of(
        lm,
        records,
        objectives,
        form,
        joint=settings.joint,
        batch_size=batch_size,
        progress=progress,
        left_alone=neutral.left_alone,
    )
    found = tune(
        lm,
        [TunedObjective(each, weights[each.name], readings.captures[each.name]) for each in objectives],
        settings.candidates,
        held_out,
        form,
        finer=settings.finer,
        neutral_texts=neutral.measured,
        pairs_sha256=_sha256(records, neutral.left_alone),
        seed=settings.seed,
        batch_size=batch_size,
        kl_budget=settings.kl_budget,
        state_path=state_path,
        progress=progress,
    )
    measured = {point.candidate for point in found.result.points if point.kl is not None}
    fitted = {
        planned.candidate.name: with_origin(
            lm,
            Fitted(
                planned.plan, readings.filters, planned.sites, (*planned.notes, *_notes_of(planned.candidate, neutral))
            ),
            objectives,
            form,
            _settings_of(planned.candidate, joint=settings.joint),
        )
        for planned in found.planned
        if planned.plan is not None and planned.candidate.name in measured
    }
    frontier = {name: each.plan for name, each in fitted.items()}
    if found.result.chosen is None:
        return TunedFit(found.result, None, frontier)
    best = with_interference(lm, fitted[found.result.chosen], readings, joint=settings.joint)
    provenance = {**best.plan.provenance, "tuning": found.result.to_json()}
    return TunedFit(found.result, replace(best, plan=replace(best.plan, provenance=provenance)), frontier)


def _leaves_alone(candidate: Candidate) -> bool:
    return isinstance(candidate.method, LeavesAlone)


def _notes_of(candidate: Candidate, neutral: NeutralSplit) -> tuple[str, ...]:
    """What must stand beside the edits of a candidate."""
    if not (neutral.left_alone and _leaves_alone(candidate)):
        return ()
    seen, others = len(neutral.left_alone), len(neutral.measured)
    return (f"the fits saw {seen} neutral texts, to leave them alone; the drift is that on the other {others}",)


def _settings_of(candidate: Candidate, *, joint: bool) -> FitSettings:
    """A candidate as the settings that find its edits again."""
    settings = candidate.settings
    return FitSettings(
        candidate.method,
        candidate.layers,
        settings.strength,
        settings.rank,
        settings.seed,
        candidate.positions,
        gated=settings.gated,
        top_layers=settings.top_layers,
        joint=joint,
        untie=settings.untie,
        penalty=settings.penalty,
    )


def _sha256(records: Sequence[PairRecord], left_alone: Sequence[str]) -> str:
    """Which pairs, and which texts beside them: of their JSON."""
    read = [*(asdict(record) for record in records), *([list(left_alone)] if left_alone else [])]
    text = json.dumps(read, ensure_ascii=True, sort_keys=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()
