"""What the study measures: of each case what is predicted, and what an edit then does by a judge that goes by rule."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from alignez_bake.errors import BadInputError
from alignez_bake.evaluation.behaviour import judged_answers
from alignez_bake.feasibility.assess import assess, assess_cheaply, spread
from alignez_bake.feasibility.layers import best_layer
from alignez_bake.fit_settings import FitSettings
from alignez_bake.language_model.loading import load_language_model
from alignez_bake.language_model.sampling import derived_seed
from alignez_bake.lowering.hooks import edited_by_hooks
from alignez_bake.methods.registry import METHODS
from alignez_bake.model_folder import open_model_folder
from alignez_bake.pipeline import fit_edits, write_own_pairs
from alignez_bake.progress import NoProgress
from alignez_bake.prompts.persona import persona_sentence
from alignez_bake.prompts.prompt_form import prompt_form
from benchmarks.feasibility_models import STEPS, StudyBase
from benchmarks.measuring import ANSWER_TOKENS
from benchmarks.world_folder import read_world
from benchmarks.worlds import DEMO

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from alignez_bake.feasibility.assess import Feasibility
    from alignez_bake.language_model.loading import LanguageModel
    from alignez_bake.preference_pairs.records import PairRecord
    from alignez_bake.prompts.prompt_form import PromptForm

OBEDIENCES: Final = (50, 60, 75, 85, 100)
QUERIES: Final = (8, 16, 32, 100)
SWAPPED: Final = (10, 25, 50)
ALL_QUERIES: Final = 100
STUDIED: Final = ("contrastive_decoding", "ridge")
"""Methods at their default strength: what the default choice tries first."""
TUNED: Final = "tuned"
"""The demo's tuned twin as a base: it does already what it is asked for."""


@dataclass(frozen=True)
class Case:
    """One point of the study.

    Attributes:
        axis: what is varied: `persona`, `pairs` or `queries`.
        base: name of a `StudyBase`, or `tuned`.
        queries: that pairs are made of.
        swapped: per cent of the pairs whose good and bad answer changed places.
        seed: of pairs, samples and swaps.
    """

    axis: str
    base: str
    queries: int
    swapped: int
    seed: int

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.base}-{self.queries}-queries-{self.swapped}-swapped-seed-{self.seed}"


@dataclass(frozen=True)
class Outcome:
    """What a case gave.

    Attributes:
        refused: why there is neither prediction nor edit; else empty.
        full: `Feasibility.to_json` of the full assessment.
        cheap: the same of the one at the start of a run.
        base: good answers, by rule, of the base on held-out queries; a share.
        persona: the same under the good persona.
        edited: the same with the edits of each method of `STUDIED`, by its name.
        answers: behind each share.
    """

    refused: str = ""
    full: dict[str, Any] | None = None
    cheap: dict[str, Any] | None = None
    base: float | None = None
    persona: float | None = None
    edited: dict[str, float] = field(default_factory=dict)
    answers: int = 0


def study_bases(obedience: Sequence[int], steps: int = STEPS) -> dict[str, StudyBase]:
    """The bases by name, the demo's last."""
    bases = [*(StudyBase(share, steps) for share in obedience), StudyBase(None)]
    return {base.name: base for base in bases}


def study_cases(bases: Sequence[str], seeds: int) -> list[Case]:
    """All cases, seed by seed; one that lies on several axes is named after the first."""
    found: dict[str, Case] = {}
    for seed in range(seeds):
        cases = [Case("persona", base, ALL_QUERIES, 0, seed) for base in (*bases, TUNED)]
        cases += [Case("pairs", "demo", ALL_QUERIES, swapped, seed) for swapped in SWAPPED]
        cases += [Case("queries", "demo", queries, 0, seed) for queries in QUERIES]
        for case in cases:
            found.setdefault(case.name, case)
    return list(found.values())


def swap_sides(records: Sequence[PairRecord], share: float, seed: int) -> list[PairRecord]:
    """The records with the sides of a share of the queries exchanged, as pairs that somebody wrote by hand.

    Args:
        records: of one objective.
        share: within [0, 1].
        seed: which queries.
    """
    queries = list(dict.fromkeys(record.query["query"] for record in records))
    chosen = set(random.Random(seed).sample(queries, round(share * len(queries))))
    other: dict[str, Any] = {"good": "bad", "bad": "good"}
    return [
        replace(
            record,
            side=other[record.side] if record.query["query"] in chosen else record.side,
            characteristic="",
            prompt="",
            seed=None,
        )
        for record in records
    ]


class Bench:
    """One base, ready to be measured: `measure` for each of its cases."""

    def __init__(self, folder: Path, *, batch_size: int, samples: int) -> None:
        """Measure the base of this folder, `samples` answers to each held-out query."""
        self._folder = folder
        self._batch_size = batch_size
        self._samples = samples
        self._world = read_world(DEMO)
        self._rates: dict[tuple[int, str | None], float] = {}

    @cached_property
    def _lm(self) -> LanguageModel:
        return load_language_model(open_model_folder(self._folder))

    @cached_property
    def _form(self) -> PromptForm:
        return prompt_form(self._lm.tokenizer, self._world.prompt_template)

    def measure(self, case: Case) -> Outcome:
        """Prediction, edit, and what it does."""
        asked = replace(self._world.asked, queries=tuple(spread(self._world.asked.queries, case.queries)))
        (objective,) = asked.objectives
        pairs, limits = write_own_pairs(
            self._lm, asked, self._form, None, batch_size=self._batch_size, seed=case.seed, progress=NoProgress()
        )
        records = swap_sides(pairs.records, case.swapped / 100, case.seed) if case.swapped else list(pairs.records)
        try:
            full = assess(
                self._lm,
                records,
                objective,
                self._form,
                answer_tokens=limits.answer,
                batch_size=self._batch_size,
                seed=case.seed,
            )
            cheap = assess_cheaply(
                self._lm,
                records,
                [objective],
                self._form,
                weights=asked.weights,
                answer_tokens=limits.answer,
                batch_size=self._batch_size,
                seed=case.seed,
            )
            fitted = {
                method: fit_edits(
                    self._lm,
                    records,
                    asked.objectives,
                    self._form,
                    FitSettings(METHODS[method], tuple(range(self._lm.folder.num_layers)), None, None, case.seed),
                    weights=asked.weights,
                    batch_size=self._batch_size,
                    progress=NoProgress(),
                )
                for method in STUDIED
            }
        except BadInputError as error:
            return Outcome(refused=str(error))
        edited = {}
        for method, found in fitted.items():
            with edited_by_hooks(self._lm.model, self._lm.architecture, found.plan):
                edited[method] = self._judged(case.seed)
        return Outcome(
            full=_figures(full),
            cheap=_figures(cheap[objective.name]),
            base=self._rate(case.seed),
            persona=self._rate(case.seed, under=persona_sentence(objective, "good")),
            edited=edited,
            answers=self._samples * len(self._world.held_out),
        )

    def _rate(self, seed: int, under: str | None = None) -> float:
        """Of the base, measured once a seed."""
        if (seed, under) not in self._rates:
            self._rates[seed, under] = self._judged(seed, under)
        return self._rates[seed, under]

    def _judged(self, seed: int, under: str | None = None) -> float:
        """Share of good answers to held-out queries, by rule; with one seed all models draw the same random numbers."""
        found = judged_answers(
            self._lm,
            self._world.held_out,
            self._world.judge,
            self._form,
            samples=self._samples,
            seed=derived_seed(seed, "benchmark answers"),
            batch_size=self._batch_size,
            max_new_tokens=ANSWER_TOKENS,
            sentence=under,
        )
        return found.good_rate.value


def _figures(found: Feasibility) -> dict[str, Any]:
    """What the tables are made of, and what led to it; layers only where pairs are told apart best."""
    values = found.to_json()
    best = best_layer(found.layers) if found.layers else None
    values["layers"] = None if best is None else {"layer": best.layer, "tokens": best.tokens, "p_value": best.p_value}
    if best is not None:
        values["layers"]["told_apart"] = best.separability.held_out.as_json()
    return values
