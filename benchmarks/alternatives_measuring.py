"""Makes the models of the alternatives, each from the same pairs, and measures them as their users load them."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from alignez_bake.commands.bake import bake
from alignez_bake.fit_settings import FitSettings
from alignez_bake.language_model.loading import load_language_model
from alignez_bake.language_model.sampling import derived_seed, sample
from alignez_bake.methods.registry import method_named
from alignez_bake.model_folder import open_model_folder
from alignez_bake.pipeline import fit_edits
from alignez_bake.preference_pairs.filters import match_pairs
from alignez_bake.progress import NoProgress
from alignez_bake.prompts.persona import persona_sentence
from benchmarks.alternatives_distillation import DistillationSettings, distilled
from benchmarks.alternatives_subjects import ALTERNATIVES, Ours
from benchmarks.measuring import ANSWER_TOKENS
from benchmarks.subjects import BASE, PROMPTED, TUNED
from examples.preference_tuning import Preference, dpo_tuned

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alignez_bake.language_model.loading import LanguageModel
    from alignez_bake.preference_pairs.filters import Pair
    from benchmarks.cells import Cell, Measured
    from benchmarks.measuring import WorldBench

PAIRS_SEED: Final = 0
"""All rows learn from one set of pairs; what differs between seeds is the training, and the luck of the answers."""


@dataclass(frozen=True)
class AnswerCost:
    """What answering takes.

    Attributes:
        prompt_tokens: read before each answer, mean.
        answer_tokens: written, mean, EOS included.
        alone: processor milliseconds an answer, one query at a time; median of the rounds.
        together: the same with `batch` queries at a time.
    """

    prompt_tokens: float
    answer_tokens: float
    alone: float
    together: float


@dataclass(frozen=True, eq=False)
class AlternativesBench:
    """One world, and what is made of its base.

    Attributes:
        bench: of the world.
        max_steps: of every training, to try things out; None: as long as it takes.
    """

    bench: WorldBench
    max_steps: int | None = None

    def measure(self, cell: Cell) -> Measured:
        """Train where there is something to train, load what came out, and measure it."""
        if ALTERNATIVES[cell.subject].training is None:
            lm = self.bench.tuned if cell.subject == TUNED else self.bench.base
            return self.bench.figures(cell, lm, sentence=self._sentence if cell.subject == PROMPTED else None)
        with tempfile.TemporaryDirectory() as scratch:
            began, began_cpu = time.perf_counter(), time.process_time()
            folder = self.made(cell.subject, cell.seed, Path(scratch) / "model")
            seconds = {"wall": time.perf_counter() - began, "processor": time.process_time() - began_cpu}
            return self.bench.figures(cell, load_language_model(open_model_folder(folder)), seconds=seconds)

    def made(self, subject: str, seed: int, out: Path) -> Path:
        """The checkpoint of a row that is trained or fitted, from pairs that are there to the folder on disk."""
        training = ALTERNATIVES[subject].training
        base = self.bench.base.folder
        if isinstance(training, Ours):
            return self._baked(training, seed, out)
        if isinstance(training, DistillationSettings):
            settings = replace(training, seed=seed, max_steps=self.max_steps)
            objective = self.bench.world.asked.objectives[0]
            return distilled(base, self._pairs(), objective, form=self.bench.form, settings=settings, out=out)
        assert training is not None, subject
        preferences = [Preference(pair.query["query"], pair.good.text, pair.bad.text) for pair in self._pairs()]
        return dpo_tuned(
            base, preferences, self.bench.form, replace(training, seed=seed, max_steps=self.max_steps), out
        )

    def answer_costs(self, ours: str, *, queries: int, batch: int, rounds: int) -> dict[str, AnswerCost]:
        """Seconds of answering: base, base with the persona before each query, and ours; they take turns.

        Args:
            ours: the row that stands for all edited and trained models, which cost what the base costs.
            queries: how many are answered, of the held-out ones.
            batch: how many together.
            rounds: that are timed, after one that is not.
        """
        asked = [query["query"] for query in self.bench.world.held_out[:queries]]
        with tempfile.TemporaryDirectory() as scratch:
            edited = load_language_model(open_model_folder(self.made(ours, PAIRS_SEED, Path(scratch) / "model")))
            models: dict[str, tuple[LanguageModel, str | None]] = {
                BASE: (self.bench.base, None),
                PROMPTED: (self.bench.base, self._sentence),
                ours: (edited, None),
            }
            spent: dict[str, list[tuple[float, float, int]]] = {name: [] for name in models}
            for turn in range(rounds + 1):
                names = list(models) if turn % 2 == 0 else list(models)[::-1]
                for name in names:
                    lm, sentence = models[name]
                    contexts = [self.bench.form.context_ids(query, sentence) for query in asked]
                    alone, _ = _timed(lm, contexts, turn, 1)
                    together, written = _timed(lm, contexts, turn, batch)
                    spent[name].append((alone, together, written))
        costs = {}
        for name, (_, sentence) in models.items():
            timed = spent[name][1:]
            read = sum(len(self.bench.form.context_ids(query, sentence)) for query in asked)
            costs[name] = AnswerCost(
                prompt_tokens=read / len(asked),
                answer_tokens=sum(written for _, _, written in timed) / len(asked) / len(timed),
                alone=1000 * _median([alone for alone, _, _ in timed]) / len(asked),
                together=1000 * _median([together for _, together, _ in timed]) / len(asked),
            )
        return costs

    @property
    def _sentence(self) -> str:
        return persona_sentence(self.bench.world.asked.objectives[0], "good")

    def _pairs(self) -> list[Pair]:
        return match_pairs(self.bench.pairs(PAIRS_SEED).records, self.bench.world.asked.objectives[0].name)[0]

    def _baked(self, ours: Ours, seed: int, out: Path) -> Path:
        bench = self.bench
        method = method_named(ours.method)
        settings = FitSettings(method, tuple(range(bench.base.folder.num_layers)), method.default_strength, None, seed)
        fitted = fit_edits(
            bench.base,
            bench.pairs(PAIRS_SEED).records,
            bench.world.asked.objectives,
            bench.form,
            settings,
            weights=bench.world.asked.weights,
            batch_size=bench.batch_size,
            progress=NoProgress(),
        )
        return bake(bench.world.base, fitted.plan, out).path


def _timed(lm: LanguageModel, contexts: Sequence[Sequence[int]], turn: int, batch: int) -> tuple[float, int]:
    """Processor seconds, and tokens written."""
    began = time.process_time()
    answers = sample(
        lm, contexts, max_new_tokens=ANSWER_TOKENS, batch_size=batch, seed=derived_seed(turn, "answer costs")
    )
    return time.process_time() - began, sum(len(answer) + 1 for answer in answers)


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]
