"""The way from a base model to a plan of edits, once: queries, pairs, activation statistics, edits.

The commands `pairs`, `fit` and `align` are made of these steps; what follows (lowering, artefact, certificate) is
`commands.bake`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from alignez_bake.capture.run import Capture
from alignez_bake.capture.tokenise import tokenise_pairs
from alignez_bake.edit_plan import EditPlan
from alignez_bake.errors import BadInputError
from alignez_bake.interference.contradictions import check_contradictions
from alignez_bake.interference.report import interference_of
from alignez_bake.methods.joint import joint_captures
from alignez_bake.preference_pairs.filters import FilterReport, match_pairs
from alignez_bake.preference_pairs.generation import ANSWER_TOKENS, CHARACTERISTIC_TOKENS, bare_prompts, generate_pairs
from alignez_bake.prompts.objective import parse_objectives, read_objectives_file, shipped_objectives
from alignez_bake.prompts.queries import read_queries, shipped_queries
from alignez_bake.report.record import tool_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from alignez_bake.capture.sequences import TokenisedPair
    from alignez_bake.edit import Edit
    from alignez_bake.fit_settings import FitSettings
    from alignez_bake.language_model.loading import LanguageModel
    from alignez_bake.methods.protocol import SiteReport
    from alignez_bake.preference_pairs.generation import BarePrompts
    from alignez_bake.preference_pairs.records import PairRecord, PairSet
    from alignez_bake.progress import Progress
    from alignez_bake.prompts.objective import Objective
    from alignez_bake.prompts.prompt_form import PromptForm
    from alignez_bake.prompts.queries import Query

MIN_ANSWER_TOKENS: Final = 16
# Within its sentence a characteristic may be split into some tokens more than by itself.
SENTENCE_SLACK: Final = 8


@dataclass(frozen=True)
class Asked:
    """What is to be aligned, and on which queries.

    Attributes:
        objectives: in the order asked for.
        weights: dial of each objective.
        queries: that every objective is asked.
        duplicates: lines of the query file that repeated an earlier query and were dropped.
    """

    objectives: tuple[Objective, ...]
    weights: Mapping[str, float]
    queries: tuple[Query, ...]
    duplicates: int


def read_asked(objective: str, objectives_file: Path | None, queries: Path | None) -> Asked:
    """Objectives and queries, checked before anything runs.

    Args:
        objective: `name[=weight],...`.
        objectives_file: further objectives of the user's own.
        queries: a file of queries; those that the project ships unless given.

    Raises:
        BadInputError: unknown objectives, or a file that cannot be read.
    """
    known = known_objectives(objectives_file)
    weights = parse_objectives(objective, known)
    duplicates = 0
    if queries is not None:
        own = read_queries(queries)
        duplicates = own.duplicates
        distinct = own.queries
    else:
        shipped = {query["query"]: query for name in weights for query in shipped_queries(name)}
        distinct = list(shipped.values())
    return Asked(tuple(known[name] for name in weights), weights, tuple(distinct), duplicates)


def known_objectives(objectives_file: Path | None) -> dict[str, Objective]:
    """The objectives that the project ships, and those of a user's file, which may redefine them."""
    own = {} if objectives_file is None else read_objectives_file(objectives_file)
    return {**shipped_objectives(), **own}


@dataclass(frozen=True)
class Fitted:
    """The edits of all objectives, and what led to them.

    Attributes:
        plan: edits, dials and provenance.
        filters: by objective what became of its pairs.
        sites: by objective what the fit found at each site.
        notes: sentences that must stand beside the edits, such as what was frozen over the pairs.
    """

    plan: EditPlan
    filters: Mapping[str, FilterReport]
    sites: Mapping[str, tuple[SiteReport, ...]]
    notes: tuple[str, ...] = ()

    def noting(self, *more: str) -> Fitted:
        """The same with further notes, which stand in the plan's provenance as well."""
        notes = tuple(dict.fromkeys((*self.notes, *more)))
        if not notes:
            return self
        provenance = {**self.plan.provenance, "notes": list(notes)}
        return replace(self, plan=replace(self.plan, provenance=provenance), notes=notes)


def fit_edits(
    lm: LanguageModel,
    records: Sequence[PairRecord],
    objectives: Sequence[Objective],
    form: PromptForm,
    settings: FitSettings,
    *,
    weights: Mapping[str, float],
    batch_size: int,
    progress: Progress,
    left_alone: Sequence[str] = (),
) -> Fitted:
    """Capture and fit, one objective after the other; each reads the unedited base.

    With two objectives or more the provenance says under `interference` what their edits have in common and what each
    dial does to each objective. Texts that are `left_alone` are seen by methods that leave texts alone.

    Raises:
        BadInputError: too few pairs of an objective, activations that hold nothing to fit, or objectives that
            `check_together` refuses.
    """
    check_together(objectives, weights, joint=settings.joint)
    readings = read_pairs_of(
        lm,
        records,
        objectives,
        form,
        joint=settings.joint,
        batch_size=batch_size,
        progress=progress,
        left_alone=left_alone,
    )
    edits: list[Edit] = []
    sites: dict[str, tuple[SiteReport, ...]] = {}
    notes: dict[str, None] = {}
    for objective in objectives:
        found = settings.method.fit(
            readings.captures[objective.name],
            lm.architecture,
            settings.layers,
            settings.for_objective(objective.name),
        )
        # Which rows an edit changes is the same question for every method, so it is answered here, once.
        edits.extend(replace(edit, positions=settings.positions) for edit in found.edits)
        sites[objective.name] = found.sites
        notes.update(dict.fromkeys(found.notes))
    if not edits:
        raise BadInputError(f"method {settings.method.name!r} found nothing to edit in any layer")
    fitted_objectives = {edit.objective for edit in edits}
    plan = EditPlan(
        tuple(edits), weights={name: weight for name, weight in weights.items() if name in fitted_objectives}
    )
    fitted = with_origin(lm, Fitted(plan, readings.filters, sites, tuple(notes)), objectives, form, settings)
    return with_interference(lm, fitted, readings, joint=settings.joint)


@dataclass(frozen=True)
class Readings:
    """The pairs of all objectives, ready to be recorded.

    Attributes:
        filters: by objective what became of its pairs.
        pairs: by objective its own pairs.
        captures: by objective what its edits are fitted to.
        batch_size: sequences that run together.
        progress: counts them.
    """

    filters: Mapping[str, FilterReport]
    pairs: Mapping[str, Sequence[TokenisedPair]]
    captures: Mapping[str, Capture]
    batch_size: int
    progress: Progress


def read_pairs_of(
    lm: LanguageModel,
    records: Sequence[PairRecord],
    objectives: Sequence[Objective],
    form: PromptForm,
    *,
    joint: bool,
    batch_size: int,
    progress: Progress,
    left_alone: Sequence[str] = (),
) -> Readings:
    """Match the pairs of each objective, and open captures over them.

    Args:
        lm: the base.
        records: pairs of all objectives.
        objectives: whose.
        form: how queries become tokens.
        joint: whether all objectives are fitted over the tokens of all.
        batch_size: sequences that run together.
        progress: counts them.
        left_alone: texts that edits should not change.

    Raises:
        BadInputError: too few pairs of an objective.
    """
    matched = {objective.name: match_pairs(records, objective.name) for objective in objectives}
    own_pairs = {each.name: tokenise_pairs(matched[each.name][0], each, form) for each in objectives}
    captures: Mapping[str, Capture]
    texts = [form.text_ids(text) for text in left_alone]
    if joint:
        everything = [pair for pairs, _ in matched.values() for pair in pairs]
        read = {each.name: tokenise_pairs(everything, each, form) for each in objectives}
        captures = joint_captures(lm, read, batch_size=batch_size, progress=progress, left_alone=texts)
    else:
        captures = {
            name: Capture(lm, pairs, batch_size=batch_size, progress=progress, left_alone=texts)
            for name, pairs in own_pairs.items()
        }
    filters = {name: report for name, (_, report) in matched.items()}
    return Readings(filters, own_pairs, captures, batch_size, progress)


def with_origin(
    lm: LanguageModel, fitted: Fitted, objectives: Sequence[Objective], form: PromptForm, settings: FitSettings
) -> Fitted:
    """Say in the plan what it is for and where its edits come from."""
    provenance = {
        "tool": tool_name(),
        "method": settings.method.name,
        "settings": settings.as_json(),
        "seed": settings.seed,
        "dtype": str(lm.model.dtype).removeprefix("torch."),
        "prompt_form": form.settings,
        "objectives": {objective.name: {"good": objective.good, "bad": objective.bad} for objective in objectives},
        "pairs": {name: report.as_json() for name, report in fitted.filters.items()},
        "sites": {name: [site.as_json() for site in reports] for name, reports in fitted.sites.items()},
        **({"notes": list(fitted.notes)} if fitted.notes else {}),
    }
    return replace(fitted, plan=replace(fitted.plan, base=lm.folder.fingerprint, provenance=provenance))


def with_interference(lm: LanguageModel, fitted: Fitted, readings: Readings, *, joint: bool) -> Fitted:
    """Measure what several objectives do to each other, and say it in the plan; as it is where there is one."""
    found = interference_of(
        lm, fitted.plan, readings.pairs, joint=joint, batch_size=readings.batch_size, progress=readings.progress
    )
    if found is None:
        return fitted
    provenance = {**fitted.plan.provenance, "interference": found.record}
    return replace(fitted, plan=replace(fitted.plan, provenance=provenance)).noting(*found.notes)


def check_together(objectives: Sequence[Objective], weights: Mapping[str, float], *, joint: bool) -> None:
    """Refuse objectives that cannot be fitted together, before anything runs.

    Raises:
        BadInputError: objectives that contradict each other at their dials, or fewer than two for a joint fit.
    """
    check_contradictions(objectives, weights)
    if joint and len(objectives) < 2:
        raise BadInputError(
            f"--joint fits several objectives together, and there is one, {objectives[0].name!r}: leave it out"
        )


@dataclass(frozen=True)
class TokenLimits:
    """How long the two generated texts may be, within what the model has room for.

    Attributes:
        characteristic: most new tokens of a characteristic; 50 in the paper.
        answer: most new tokens of an answer; 200 in the paper.
        note: says why they are fewer than in the paper, or is empty.
    """

    characteristic: int
    answer: int
    note: str


def token_limits(lm: LanguageModel, prompts: BarePrompts) -> TokenLimits:
    """The paper's lengths, or less where the model's positions end before.

    Args:
        lm: the base.
        prompts: all that is to be asked.

    Raises:
        BadInputError: the longest query leaves no room for an answer.
    """
    positions = getattr(lm.model.config, "max_position_embeddings", None)
    if positions is None:
        return TokenLimits(CHARACTERISTIC_TOKENS, ANSWER_TOKENS, "")
    longest = max((len(ids) for prompt in prompts.values() for of_step in prompt for ids in of_step), default=0)
    room = positions - longest
    characteristic = min(CHARACTERISTIC_TOKENS, room // 5)
    answer = min(ANSWER_TOKENS, room - characteristic - SENTENCE_SLACK)
    if answer < MIN_ANSWER_TOKENS:
        raise BadInputError(
            f"the longest query takes {longest} of the model's {positions} positions, which leaves no room for an "
            f"answer of {MIN_ANSWER_TOKENS} tokens: shorten the queries"
        )
    if answer < ANSWER_TOKENS:
        note = (
            f"the model has {positions} positions and the longest query takes {longest}: characteristics have at most "
            f"{characteristic} tokens instead of {CHARACTERISTIC_TOKENS}, answers {answer} instead of {ANSWER_TOKENS}"
        )
        return TokenLimits(characteristic, answer, note)
    return TokenLimits(characteristic, answer, "")


def write_own_pairs(
    lm: LanguageModel,
    asked: Asked,
    form: PromptForm,
    out: Path | None,
    *,
    batch_size: int,
    seed: int,
    progress: Progress,
) -> tuple[PairSet, TokenLimits]:
    """Step 1: the base writes pairs for every objective, on that objective's queries.

    Raises:
        BadInputError: as `preference_pairs.generation.generate_pairs`.
    """
    prompts = bare_prompts(asked.queries, asked.objectives, form)
    limits = token_limits(lm, prompts)
    pairs = generate_pairs(
        lm,
        asked.queries,
        asked.objectives,
        form,
        out,
        batch_size=batch_size,
        seed=seed,
        characteristic_tokens=limits.characteristic,
        answer_tokens=limits.answer,
        prompts=prompts,
        progress=progress,
    )
    return pairs, limits
