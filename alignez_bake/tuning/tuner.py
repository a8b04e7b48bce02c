"""The choice of an edit without labels, from candidates to result."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from alignez_bake.errors import BadInputError
from alignez_bake.language_model.sampling import derived_seed
from alignez_bake.preference_pairs.filters import MIN_PAIRS
from alignez_bake.progress import NoProgress
from alignez_bake.report.record import tool_name
from alignez_bake.tuning.candidate import plans_of
from alignez_bake.tuning.judged_sampling import JudgedSampling
from alignez_bake.tuning.neutral_drift import NeutralDrift
from alignez_bake.tuning.remembering_capture import RememberingCapture
from alignez_bake.tuning.search import ROUNDS, SearchSettings, search
from alignez_bake.tuning.self_judge import FlooredJudge, JudgePanel, SelfJudge, wanted_side
from alignez_bake.tuning.state import tuning_state

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from alignez_bake.language_model.loading import LanguageModel
    from alignez_bake.progress import Progress
    from alignez_bake.prompts.prompt_form import PromptForm
    from alignez_bake.prompts.queries import Query
    from alignez_bake.tuning.candidate import Candidate, Planned, TunedObjective
    from alignez_bake.tuning.finer import FinerRungs
    from alignez_bake.tuning.frontier import TuningResult
    from alignez_bake.tuning.state import TuningState

BUDGET_SHARE: Final = 0.05
"""Default budget, as a share of the base's own loss on the neutral texts; `tune` says why."""

ANSWER_TOKENS: Final = 64
"""Most tokens of an answer that is judged: its beginning says whose it is, and the longest answers cost most."""

MIN_HELD_OUT: Final = 8
_HELD_OUT_SHARE: Final = 3


class Tuned(NamedTuple):
    """The outcome of a search, with what it was made over.

    Attributes:
        result: every candidate with what was found of it.
        planned: the candidates with their plans, in the given order, then the finer ones.
    """

    result: TuningResult
    planned: tuple[Planned, ...]

    @property
    def chosen(self) -> Planned | None:
        """The candidate to use; None where none is better than the base."""
        return next((each for each in self.planned if each.candidate.name == self.result.chosen), None)


class SplitQueries(NamedTuple):
    """Queries of two kinds, each in the given order: those that make pairs, and those that candidates answer."""

    pairs: list[Query]
    held_out: list[Query]


def split_queries(queries: Sequence[Query], seed: int) -> SplitQueries:
    """Hold a third of the queries out for tuning, at least 8: an edit is not judged on what it was fitted to.

    Args:
        queries: distinct ones.
        seed: says which.

    Raises:
        BadInputError: too few queries for pairs and tuning; the message says how many are needed.
    """
    fewest = MIN_HELD_OUT + MIN_PAIRS
    if len(queries) < fewest:
        raise BadInputError(
            f"{len(queries)} queries are too few to choose an edit: {fewest} are needed, {MIN_PAIRS} to make pairs and "
            f"{MIN_HELD_OUT} to compare edits on; a hundred are better. Or name a --method and a --strength"
        )
    count = max(MIN_HELD_OUT, len(queries) // _HELD_OUT_SHARE)
    order = np.random.default_rng(derived_seed(seed, "held out")).permutation(len(queries))
    held_out = set(order[:count].tolist())
    return SplitQueries(
        [query for place, query in enumerate(queries) if place not in held_out],
        [query for place, query in enumerate(queries) if place in held_out],
    )


def tune(
    lm: LanguageModel,
    objectives: Sequence[TunedObjective],
    candidates: Sequence[Candidate],
    held_out: Sequence[Query],
    prompt_form: PromptForm,
    *,
    finer: FinerRungs | None = None,
    neutral_texts: Sequence[str],
    pairs_sha256: str,
    seed: int,
    batch_size: int,
    kl_budget: float | None = None,
    max_new_tokens: int = ANSWER_TOKENS,
    rounds: tuple[int, ...] = ROUNDS,
    state_path: Path | None = None,
    progress: Progress | None = None,
) -> Tuned:
    """Choose among candidates by the base's own judgement of what each edited model answers.

    **The default budget** is a twentieth of the base's own loss on the neutral texts. KL(base || edited) is how much
    more than the base itself the edited model pays for what the base would write, so this is at most 5 % more, on texts
    of a kind that the base knows. A share rather than a number, since a number means something else for each model and
    each text. Measured on the demo, on texts of its own world (loss 0.65 nats per token) and on the shipped ones, which
    so small a model cannot read (10.3): the KL of ridge with strengths 2, 3 and 4 is 0.7, 11 and 39 % of the one loss
    and 4, 8 and 12 % of the other, that of fine-tuning 13 and 7 %. With strength 4 answers get worse. So 5 % draws the
    same line on both sets: below what fine-tuning costs, above a strength whose answers are as good as the best.

    Args:
        lm: the base, without edits.
        objectives: with their dials, which are not 0.
        candidates: with names of their own; list gentle ones first.
        held_out: queries that made no pairs, at least 8.
        prompt_form: how queries become tokens.
        finer: what is tried beside the best candidate of the first round; None: nothing.
        neutral_texts: what an edit should leave alone.
        pairs_sha256: of the pairs that the captures read, so that a file of another search is known.
        seed: of all samples.
        batch_size: texts that run together.
        kl_budget: most KL(base || edited) on neutral texts, in nats per token; a twentieth of the base's own loss on
            them unless given.
        max_new_tokens: most tokens of an answer.
        rounds: answers of each candidate up to the end of each round.
        state_path: a file that grows with the search; the same call goes on where an interrupted one stopped, with
            the same result. None: nothing is kept on disk.
        progress: counts what is recorded, answered and measured.

    Returns:
        Every candidate with what was found of it, its plan, and which one is chosen, or none with the reason.

    Raises:
        BadInputError: nothing to choose from, names that are not distinct, too few queries, a query that leaves no
            room for an answer, a setting out of bounds, or a file that is not this search's.
    """
    progress = progress or NoProgress()
    _check(objectives, candidates, held_out)
    # The default budget takes a pass of the model; what is given is checked now.
    settings = SearchSettings(len(held_out), 1.0 if kl_budget is None else kl_budget, seed, rounds)
    order = np.random.default_rng(derived_seed(seed, "order of queries")).permutation(len(held_out))
    queries = tuple(str(held_out[place]["query"]) for place in order)
    judges = [
        SelfJudge(lm, objective.objective, prompt_form, batch_size=batch_size, wanted=wanted_side(objective.weight))
        for objective in objectives
    ]
    for judge in judges:
        judge.check_fits(queries, max_new_tokens)
    drift = NeutralDrift(lm, neutral_texts, prompt_form, batch_size=batch_size)
    identity = {
        "tool": tool_name(),
        "base": asdict(lm.folder.fingerprint),
        "tokenizer_sha256": lm.tokenizer_sha256,
        "pairs_sha256": pairs_sha256,
        "objectives": [{**asdict(objective.objective), "weight": objective.weight} for objective in objectives],
        "queries_sha256": _sha256([query["query"] for query in held_out]),
        "neutral_sha256": _sha256(list(neutral_texts)),
        "prompt_form": prompt_form.settings,
        "kl_budget": kl_budget,
        "rounds": list(rounds),
        "seed": seed,
        "batch_size": batch_size,
        "max_new_tokens": max_new_tokens,
        "dtype": str(lm.model.dtype).removeprefix("torch."),
        "device": lm.device.type,
        "candidates": [
            {"name": candidate.name, "method": candidate.method.name, "settings": candidate.settings_json}
            for candidate in candidates
        ],
        "finer": None if finer is None else finer.as_json(),
    }
    with tuning_state(state_path, identity) as state:
        if kl_budget is None:
            settings = replace(settings, kl_budget=BUDGET_SHARE * _base_loss(drift, state))
        remembered = [replace(objective, capture=RememberingCapture(objective.capture)) for objective in objectives]
        planned = plans_of(candidates, remembered, lm.architecture, progress)

        def beside(best: Candidate) -> list[Planned]:
            names = {each.candidate.name for each in planned}
            more = [one for one in ([] if finer is None else finer.beside(best)) if one.name not in names]
            found = plans_of(more, remembered, lm.architecture, progress)
            planned.extend(found)
            return found

        panel = JudgePanel(
            tuple(
                FlooredJudge(
                    judge,
                    objective.weight,
                    _floor(judge, queries, state, seed=seed, max_new_tokens=max_new_tokens),
                )
                for judge, objective in zip(judges, objectives, strict=True)
            )
        )
        result = search(
            tuple(planned),
            JudgedSampling(
                lm, queries, prompt_form, panel, derived_seed(seed, "tuning answers"), batch_size, max_new_tokens
            ),
            drift,
            settings,
            state,
            beside=beside,
            floors={floored.judge.objective.name: floored.floor for floored in panel.judges},
            progress=progress,
        )
    return Tuned(result, tuple(planned))


def _check(objectives: Sequence[TunedObjective], candidates: Sequence[Candidate], held_out: Sequence[Query]) -> None:
    """Refuse what cannot be a search, before anything runs."""
    if not objectives or not candidates:
        raise BadInputError(f"nothing to choose from: {len(objectives)} objectives, {len(candidates)} candidates")
    for objective in objectives:
        if objective.weight == 0:
            raise BadInputError(
                f"objective {objective.objective.name!r} has weight 0, so nothing can be judged by it: leave it out"
            )
    names = [candidate.name for candidate in candidates]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise BadInputError(f"two candidates are called {repeated[0]!r}: give each a name of its own")
    if len(held_out) < MIN_HELD_OUT:
        raise BadInputError(
            f"{len(held_out)} held-out queries are too few to compare edits on: at least {MIN_HELD_OUT} are needed"
        )


def _floor(judge: SelfJudge, queries: Sequence[str], state: TuningState, *, seed: int, max_new_tokens: int) -> float:
    floor = state.number(
        {"kind": "floor", "objective": judge.objective.name},
        lambda: judge.floor(queries, seed=seed, max_new_tokens=max_new_tokens),
    )
    return _checked(floor)


def _base_loss(drift: NeutralDrift, state: TuningState) -> float:
    return _checked(state.number({"kind": "base loss"}, drift.base_loss))


def _checked(measured: float | None) -> float:
    if measured is None:
        raise BadInputError("the base's predictions are not finite: its weights or its dtype are broken")
    return measured


def _sha256(value: Any) -> str:  # noqa: ANN401 - a JSON value
    return hashlib.sha256(json.dumps(value, ensure_ascii=True, sort_keys=True).encode("ascii")).hexdigest()
