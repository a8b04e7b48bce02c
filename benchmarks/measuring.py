"""Measures the cells of one world: pairs, fits, sampled and judged answers, drift."""

from __future__ import annotations

import tempfile
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch

from alignez_bake.commands.bake import bake
from alignez_bake.errors import BadInputError
from alignez_bake.evaluation.behaviour import judged_answers
from alignez_bake.evaluation.drift import answer_loss, kl_on_texts
from alignez_bake.fit_settings import FitSettings
from alignez_bake.language_model.loading import LanguageModel, load_language_model
from alignez_bake.language_model.sampling import derived_seed
from alignez_bake.lowering.hooks import edited_by_hooks
from alignez_bake.model_folder import open_model_folder
from alignez_bake.pipeline import fit_edits, write_own_pairs
from alignez_bake.prompts.persona import persona_sentence
from alignez_bake.prompts.prompt_form import PromptForm, prompt_form
from benchmarks.cells import Measured
from benchmarks.circumstances import load_average
from benchmarks.stopwatch import Stopwatch
from benchmarks.subjects import PAIRS, PROMPTED, REFERENCES, SUBJECTS, TUNED

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from alignez_bake.edit_plan import EditPlan
    from alignez_bake.preference_pairs.records import PairSet
    from alignez_bake.prompts.queries import Query
    from benchmarks.cells import Cell
    from benchmarks.world_folder import WorldFolder

ANSWER_TOKENS: Final = 60
"""Three times the longest right answer of the worlds here: what is longer is cut, and not judged good."""


@dataclass(frozen=True)
class _Fit:
    plan: EditPlan
    seconds: dict[str, float]


@dataclass(frozen=True, eq=False)
class WorldBench:
    """One world, ready to be measured.

    Attributes:
        world: what is read.
        out: folder where pairs are kept, so that all methods and later runs share them.
        batch_size: texts that run together.
    """

    world: WorldFolder
    out: Path
    batch_size: int

    @cached_property
    def base(self) -> LanguageModel:
        """The base, loaded when first needed."""
        return load_language_model(open_model_folder(self.world.base))

    @cached_property
    def tuned(self) -> LanguageModel:
        """The yardstick, loaded when first needed."""
        return load_language_model(open_model_folder(self.world.tuned))

    @cached_property
    def form(self) -> PromptForm:
        """How queries become tokens."""
        return prompt_form(self.base.tokenizer, self.world.prompt_template)

    def measure(self, cell: Cell) -> Measured:
        """The figures of one cell."""
        if cell.subject == PAIRS:
            return self._pairs_cell(cell)
        if cell.subject in REFERENCES:
            return self._reference(cell)
        try:
            fit = self._fit(cell)
        except BadInputError as error:
            return Measured(refused=str(error))
        if cell.baked:
            return self._baked(cell, fit)
        editing = partial(edited_by_hooks, self.base.model, self.base.architecture, fit.plan)
        return self.figures(cell, self.base, editing=editing, seconds=fit.seconds)

    def _reference(self, cell: Cell) -> Measured:
        good_persona = persona_sentence(self.world.asked.objectives[0], "good")
        return self.figures(
            cell,
            self.tuned if cell.subject == TUNED else self.base,
            sentence=good_persona if cell.subject == PROMPTED else None,
        )

    def queries_of(self, cell: Cell) -> int:
        """How many queries a cell asks."""
        return len(self.world.asked.queries) if cell.subject == PAIRS else len(self._queries(cell))

    def _queries(self, cell: Cell) -> Sequence[Query]:
        held_out = self.world.held_out
        if cell.part == "all":
            return held_out
        places = self.world.first_half if cell.part == "first_half" else self.world.second_half
        return [held_out[place] for place in places]

    def figures(
        self,
        cell: Cell,
        lm: LanguageModel,
        *,
        editing: Callable[[], AbstractContextManager[object]] = nullcontext,
        sentence: str | None = None,
        seconds: dict[str, float] | None = None,
        delivered_share: float | None = None,
    ) -> Measured:
        """Figures of any model with the base's tokens; every model draws its answers with the same random numbers.

        Args:
            cell: which queries, how many answers, which seed.
            lm: the model.
            editing: entered whenever it runs.
            sentence: of a persona, before each query.
            seconds: what it took to make the model, by step.
            delivered_share: of a baked model.
        """
        with editing():
            judged = judged_answers(
                lm,
                self._queries(cell),
                self.world.judge,
                self.form,
                samples=cell.samples,
                seed=derived_seed(cell.seed, "benchmark answers"),
                batch_size=self.batch_size,
                max_new_tokens=ANSWER_TOKENS,
                sentence=sentence,
            )
        loss = kl = None
        # A persona speaks before the query: loss and KL are those of texts without one, measured without it.
        if sentence is None:
            with editing():
                loss = answer_loss(lm, self.world.good_documents, self.form, batch_size=self.batch_size)
            kl = kl_on_texts(self.base, lm, self.world.neutral, self.form, batch_size=self.batch_size, editing=editing)
        return Measured(
            good=tuple(sum(score > 0 for score in of_query) for of_query in judged.scores),
            loss=loss,
            kl=kl,
            seconds=seconds,
            load=load_average(),
            delivered_share=delivered_share,
        )

    def pairs(self, seed: int) -> PairSet:
        """The base's own pairs of that seed, made when first asked for."""
        file = self.out / f"pairs-{self.world.name.replace(' ', '_')}-seed{seed}.jsonl"
        pairs, _ = write_own_pairs(
            self.base, self.world.asked, self.form, file, batch_size=self.batch_size, seed=seed, progress=Stopwatch()
        )
        return pairs

    def _pairs_cell(self, cell: Cell) -> Measured:
        began = time.perf_counter()
        pairs = self.pairs(cell.seed)
        seconds = time.perf_counter() - began
        return Measured(
            good=tuple(self.world.judge(r.query, r.answer) > 0 for r in pairs.records if r.side == "good"),
            seconds={"pairs": seconds},
            load=load_average(),
        )

    def _fit(self, cell: Cell) -> _Fit:
        pairs = self.pairs(cell.seed)
        subject = SUBJECTS[cell.subject]
        layers = tuple(range(self.base.folder.num_layers))
        settings = FitSettings(subject.method, layers, cell.strength, None, cell.seed)
        capture = Stopwatch()
        began = time.perf_counter()
        fitted = fit_edits(
            self.base,
            pairs.records,
            self.world.asked.objectives,
            self.form,
            settings,
            weights=self.world.asked.weights,
            batch_size=self.batch_size,
            progress=capture,
        )
        whole = time.perf_counter() - began
        return _Fit(fitted.plan, {"capture": capture.seconds, "fit": whole - capture.seconds})

    def _baked(self, cell: Cell, fit: _Fit) -> Measured:
        """The same plan as an ordinary checkpoint, loaded from disk."""
        with tempfile.TemporaryDirectory() as folder:
            result = bake(self.world.base, fit.plan, Path(folder) / "aligned")
            share = result.levels[0].to_json()["lowest_delivered_share"]
            lm = load_language_model(open_model_folder(result.path))
            return self.figures(cell, lm, seconds=fit.seconds, delivered_share=share)


def run_settings(worlds: Sequence[WorldFolder], batch_size: int) -> dict[str, object]:
    """Everything that the figures of some worlds depend on beside what a cell says."""
    return {
        "batch_size": batch_size,
        "answer_tokens": ANSWER_TOKENS,
        "threads": torch.get_num_threads(),
        "models": {
            world.name: [asdict(open_model_folder(folder).fingerprint) for folder in (world.base, world.tuned)]
            for world in worlds
        },
    }
