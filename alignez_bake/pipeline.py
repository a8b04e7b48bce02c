"""The way from a base model to a plan of edits, once: queries, pairs, activation statistics, edits.

The commands `pairs`, `fit` and `align` are made of these steps; what follows (lowering, artefact, certificate) is
`commands.bake`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from alignez_bake.capture.run import Capture
from alignez_bake.capture.tokenise import tokenise_pairs
from alignez_bake.edit_plan import EditPlan
from alignez_bake.errors import BadInputError
from alignez_bake.lowering.slot import find_slot
from alignez_bake.methods.layers import parse_layers
from alignez_bake.methods.protocol import MethodSettings, SiteReport
from alignez_bake.methods.registry import method_named
from alignez_bake.preference_pairs.filters import FilterReport, match_pairs
from alignez_bake.preference_pairs.generation import ANSWER_TOKENS, CHARACTERISTIC_TOKENS, generate_pairs
from alignez_bake.prompts.objective import SIDES, parse_objectives, read_objectives_file, shipped_objectives
from alignez_bake.prompts.persona import characteristic_prompt, persona_sentence
from alignez_bake.prompts.queries import read_queries, shipped_queries
from alignez_bake.report.record import tool_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from alignez_bake.edit import Edit
    from alignez_bake.language_model.loading import LanguageModel
    from alignez_bake.methods.protocol import Method
    from alignez_bake.model_folder import ModelFolder
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
class FitSettings:
    """How edits are found, checked against a base before anything runs.

    Attributes:
        method: the method.
        layers: to edit.
        strength: the method's own; its default unless given.
        rank: of each edit; the method's default unless given.
        seed: for methods that draw.
    """

    method: Method
    layers: tuple[int, ...]
    strength: float | None
    rank: int | None
    seed: int

    def as_json(self) -> dict[str, Any]:
        """The settings that reproduce a fit."""
        return {
            "strength": self.method.default_strength if self.strength is None else self.strength,
            "rank": self.rank,
            "layers": list(self.layers),
        }


def check_fit(
    base: ModelFolder, *, method: str, strength: float | None, layers: str | None, rank: int | None, seed: int
) -> FitSettings:
    """Settings of a fit, refused before the long work where they cannot lead to a bake.

    Args:
        base: the base model.
        method: by name.
        strength: the method's own, or None.
        layers: such as `4-20`, or None for all.
        rank: of each edit, or None.
        seed: for methods that draw.

    Raises:
        BadInputError: unknown method, layers out of range, a rank that a site does not have, or a site that the
            architecture lacks.
    """
    chosen = method_named(method)
    selected = tuple(range(base.num_layers)) if layers is None else parse_layers(layers, base.num_layers)
    MethodSettings(strength=strength, rank=rank, seed=seed)
    for site in chosen.sites(base.architecture, selected):
        slot = find_slot(base, site)
        widest = min(slot.d_out, slot.d_in)
        if rank is not None and rank > widest:
            raise BadInputError(f"rank {rank} is above what site {site} has: its map is {slot.d_out} x {slot.d_in}")
    return FitSettings(chosen, selected, strength, rank, seed)


def check_foldable(settings: FitSettings, base: ModelFolder) -> None:
    """Refuse a method whose constants the base has no bias to hold, before the long work.

    Raises:
        BadInputError: the message names the method and the sites.
    """
    if not settings.method.needs_bias:
        return
    sites = settings.method.sites(base.architecture, settings.layers)
    without = [str(site) for site in sites if find_slot(base, site).bias is None]
    if without:
        raise BadInputError(
            f"method {settings.method.name!r} adds a constant, which needs a bias, and {base.path} has none at "
            f"{', '.join(without)}: use a method without constants, such as ridge"
        )


@dataclass(frozen=True)
class Fitted:
    """The edits of all objectives, and what led to them.

    Attributes:
        plan: edits, dials and provenance.
        filters: by objective what became of its pairs.
        sites: by objective what the fit found at each site.
    """

    plan: EditPlan
    filters: Mapping[str, FilterReport]
    sites: Mapping[str, tuple[SiteReport, ...]]


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
) -> Fitted:
    """Capture and fit, one objective after the other; each reads the unedited base.

    Raises:
        BadInputError: too few pairs of an objective, or activations that hold nothing to fit.
    """
    matched = {objective.name: match_pairs(records, objective.name) for objective in objectives}
    edits: list[Edit] = []
    sites: dict[str, tuple[SiteReport, ...]] = {}
    for objective in objectives:
        pairs, _ = matched[objective.name]
        capture = Capture(lm, tokenise_pairs(pairs, objective, form), batch_size=batch_size, progress=progress)
        method_settings = MethodSettings(
            strength=settings.strength, rank=settings.rank, seed=settings.seed, objective=objective.name
        )
        found = settings.method.fit(capture, lm.architecture, settings.layers, method_settings)
        edits.extend(found.edits)
        sites[objective.name] = found.sites
    if not edits:
        raise BadInputError(f"method {settings.method.name!r} found nothing to edit in any layer")
    filters = {name: report for name, (_, report) in matched.items()}
    fitted_objectives = {edit.objective for edit in edits}
    plan = EditPlan(
        tuple(edits),
        weights={name: weight for name, weight in weights.items() if name in fitted_objectives},
        base=lm.folder.fingerprint,
        provenance={
            "tool": tool_name(),
            "method": settings.method.name,
            "settings": settings.as_json(),
            "seed": settings.seed,
            "prompt_form": form.settings,
            "objectives": {objective.name: {"good": objective.good, "bad": objective.bad} for objective in objectives},
            "pairs": {name: report.as_json() for name, report in filters.items()},
            "sites": {name: [site.as_json() for site in reports] for name, reports in sites.items()},
        },
    )
    return Fitted(plan, filters, sites)


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


def token_limits(lm: LanguageModel, asked: Asked, form: PromptForm) -> TokenLimits:
    """The paper's lengths, or less where the model's positions end before.

    Raises:
        BadInputError: the longest query leaves no room for an answer.
    """
    positions = getattr(lm.model.config, "max_position_embeddings", None)
    if positions is None:
        return TokenLimits(CHARACTERISTIC_TOKENS, ANSWER_TOKENS, "")
    longest = 0
    for objective in asked.objectives:
        sentences = [persona_sentence(objective, side) for side in SIDES]
        for query in asked.queries:
            asking = [len(form.text_ids(characteristic_prompt(objective, side, query["query"]))) for side in SIDES]
            answering = [len(ids) for ids in form.contexts(query["query"], sentences).ids]
            longest = max(longest, *asking, *answering)
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
    limits = token_limits(lm, asked, form)
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
        progress=progress,
    )
    return pairs, limits
