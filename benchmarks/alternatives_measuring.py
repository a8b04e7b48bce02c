"""Makes the models of the alternatives, each from the same pairs, and measures them as their users load them."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from alignez_bake.asked_fit import AskedFit
from alignez_bake.commands.bake import bake
from alignez_bake.fit_settings import FitSettings
from alignez_bake.language_model.loading import load_language_model
from alignez_bake.language_model.sampling import derived_seed, sample
from alignez_bake.model_folder import open_model_folder
from alignez_bake.pipeline import fit_edits, write_own_pairs
from alignez_bake.preference_pairs.filters import match_pairs
from alignez_bake.progress import NoProgress
from alignez_bake.prompts.persona import persona_sentence
from alignez_bake.tuning.offered import check_settings
from alignez_bake.tuning.tuned_fit import queries_to_judge, tune_edits
from benchmarks.alternatives_distillation import DistillationSettings, distilled
from benchmarks.alternatives_subjects import ALTERNATIVES, Ours
from benchmarks.cells import Measured
from benchmarks.measuring import ANSWER_TOKENS
from benchmarks.subjects import BASE, PAIRS, PROMPTED, TUNED
from examples.preference_tuning import DpoSettings, Preference, dpo_tuned

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from alignez_bake.language_model.loading import LanguageModel
    from alignez_bake.preference_pairs.filters import Pair
    from alignez_bake.tuning.offered import TuneSettings
    from benchmarks.cells import Cell
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


@dataclass(frozen=True)
class Made:
    """A model on disk.

    Attributes:
        path: its folder; the base's own where a choice found nothing better, as that is what the user is left with.
        chosen: of a choice, the candidate, or the base's own name; None where nothing was chosen.
    """

    path: Path
    chosen: str | None = None


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
        """Train where there is something to train, load what came out, and measure it.

        The seconds of every row are those from pairs in memory to the checkpoint on disk: the base is loaded within
        them, a choice is made within them, and the checks of ours are theirs too.
        """
        if cell.subject == PAIRS:
            return self._pairs_written()
        if ALTERNATIVES[cell.subject].training is None:
            lm = self.bench.tuned if cell.subject == TUNED else self.bench.base
            return self.bench.figures(cell, lm, sentence=self._sentence if cell.subject == PROMPTED else None)
        with tempfile.TemporaryDirectory() as scratch:
            clock = _Clock()
            made = self.made(cell.subject, cell.seed, Path(scratch) / "model")
            seconds = clock.seconds()
            lm = load_language_model(open_model_folder(made.path))
            return replace(self.bench.figures(cell, lm, seconds=seconds), chosen=made.chosen)

    def made(self, subject: str, seed: int, out: Path) -> Made:
        """The checkpoint of a row that is trained or fitted, from pairs that are there to the folder on disk."""
        training = ALTERNATIVES[subject].training
        assert training is not None, subject
        return self._made(training, seed, out, self.max_steps)

    def warm_up(self, subjects: Iterable[str]) -> None:
        """Make one model of each kind that the rows are of, as briefly as it goes, before anything is timed.

        What is imported and set up at first use, which is seconds of TRL, would else be the first row's.
        """
        trainings = [training for subject in subjects if (training := ALTERNATIVES[subject].training) is not None]
        for training in {type(training): training for training in trainings}.values():
            with tempfile.TemporaryDirectory() as scratch:
                brief = Ours("ridge") if isinstance(training, Ours) else training
                self._made(brief, PAIRS_SEED, Path(scratch) / "model", max_steps=1)

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
            made = self.made(ours, PAIRS_SEED, Path(scratch) / "model")
            edited = load_language_model(open_model_folder(made.path))
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

    def _pairs_written(self) -> Measured:
        """What writing the pairs takes, which every row needs beside its own seconds."""
        bench = self.bench
        clock = _Clock()
        write_own_pairs(
            bench.base,
            bench.world.asked,
            bench.form,
            None,
            batch_size=bench.batch_size,
            seed=PAIRS_SEED,
            progress=NoProgress(),
        )
        return Measured(seconds=clock.seconds())

    def _made(
        self, training: Ours | DistillationSettings | DpoSettings, seed: int, out: Path, max_steps: int | None
    ) -> Made:
        base = self.bench.base.folder
        if isinstance(training, Ours):
            return self._baked(training, seed, out)
        if isinstance(training, DistillationSettings):
            settings = replace(training, seed=seed, max_steps=max_steps)
            objective = self.bench.world.asked.objectives[0]
            return Made(distilled(base, self._pairs(), objective, form=self.bench.form, settings=settings, out=out))
        preferences = [Preference(pair.query["query"], pair.good.text, pair.bad.text) for pair in self._pairs()]
        tuning = replace(training, seed=seed, max_steps=max_steps)
        return Made(dpo_tuned(base, preferences, self.bench.form, tuning, out))

    def _baked(self, ours: Ours, seed: int, out: Path) -> Made:
        bench = self.bench
        lm = load_language_model(bench.base.folder)  # as the trainings do: within the seconds
        settings = check_settings(lm.folder, AskedFit(method=ours.method, seed=seed))
        if not isinstance(settings, FitSettings):
            return self._chosen(lm, settings, out)
        fitted = fit_edits(
            lm,
            bench.pairs(PAIRS_SEED).records,
            bench.world.asked.objectives,
            bench.form,
            settings,
            weights=bench.world.asked.weights,
            batch_size=bench.batch_size,
            progress=NoProgress(),
        )
        return Made(bake(bench.world.base, fitted.plan, out).path)

    def _chosen(self, lm: LanguageModel, settings: TuneSettings, out: Path) -> Made:
        """Fit to the pairs of the queries that are not held out, and choose by answers to those that are."""
        bench, asked = self.bench, self.bench.world.asked
        split = queries_to_judge(asked.queries, asked.weights, settings.seed)
        learned = {query["query"] for query in split.pairs}
        tuned = tune_edits(
            lm,
            [record for record in bench.pairs(PAIRS_SEED).records if record.query["query"] in learned],
            asked.objectives,
            bench.form,
            settings,
            held_out=split.held_out,
            weights=asked.weights,
            batch_size=bench.batch_size,
            state_path=None,
            progress=NoProgress(),
        )
        if tuned.fitted is None:
            return Made(lm.folder.path, BASE)
        return Made(bake(bench.world.base, tuned.fitted.plan, out).path, tuned.tuning.chosen)


class _Clock:
    """Wall and processor seconds since it was made."""

    def __init__(self) -> None:
        self._wall, self._processor = time.perf_counter(), time.process_time()

    def seconds(self) -> dict[str, float]:
        return {"wall": time.perf_counter() - self._wall, "processor": time.process_time() - self._processor}


def _timed(lm: LanguageModel, contexts: Sequence[Sequence[int]], turn: int, batch: int) -> tuple[float, int]:
    """Processor seconds, and tokens written."""
    began = time.process_time()
    answers = sample(
        lm, contexts, max_new_tokens=ANSWER_TOKENS, batch_size=batch, seed=derived_seed(turn, "answer costs")
    )
    return time.process_time() - began, sum(len(answer) + 1 for answer in answers)


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]
