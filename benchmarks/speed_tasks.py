"""What is timed: writing pairs at several batch sizes, and recording against bare forward passes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from alignez_bake.capture.run import Capture
from alignez_bake.capture.spec import Pass
from alignez_bake.capture.tokenise import tokenise_pairs
from alignez_bake.language_model.batching import length_sorted_batches, right_padded
from alignez_bake.methods.registry import METHODS
from alignez_bake.methods.ridge import RIDGE
from alignez_bake.pipeline import write_own_pairs
from alignez_bake.preference_pairs.filters import match_pairs
from alignez_bake.progress import NoProgress
from alignez_bake.prompts.prompt_form import PromptForm, prompt_form

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alignez_bake.capture.sequences import TokenisedPair
    from alignez_bake.capture.spec import CaptureSpec
    from alignez_bake.language_model.loading import LanguageModel
    from alignez_bake.pipeline import Asked
    from alignez_bake.preference_pairs.records import PairSet


@dataclass(frozen=True, eq=False)
class SpeedTasks:
    """The tasks on one model.

    Attributes:
        lm: the base.
        asked: objective and queries.
        batch_size: the command line's, which also holds for recording.
        seed: of the pairs.
        prompt_template: the world's, where it has one.
    """

    lm: LanguageModel
    asked: Asked
    batch_size: int
    seed: int
    prompt_template: str | None = None

    @cached_property
    def form(self) -> PromptForm:
        """How queries become tokens."""
        return prompt_form(self.lm.tokenizer, self.prompt_template)

    def write_pairs(self, batch_size: int) -> PairSet:
        """Both steps for all queries, as the command `pairs` does them, with nothing kept on disk."""
        pairs, _ = write_own_pairs(
            self.lm, self.asked, self.form, None, batch_size=batch_size, seed=self.seed, progress=NoProgress()
        )
        return pairs

    def with_queries(self, number: int) -> SpeedTasks:
        """The same on the first queries alone."""
        return replace(self, asked=replace(self.asked, queries=self.asked.queries[:number]))

    @cached_property
    def pairs(self) -> list[TokenisedPair]:
        """Pairs as the fit reads them; the same texts for both sides of a comparison."""
        objective = self.asked.objectives[0]
        found, _ = match_pairs(self.write_pairs(self.batch_size).records, objective.name, min_pairs=1)
        return tokenise_pairs(found, objective, self.form)

    @cached_property
    def specs(self) -> Sequence[CaptureSpec]:
        """What the default method records, at its untuned default."""
        sites = METHODS["ridge"].sites(self.lm.architecture, range(self.lm.folder.num_layers))
        return [RIDGE.spec(site) for site in sites]

    def record(self) -> None:
        """Weights of disagreement and all moments: five forward passes a pair, two of them with logits."""
        Capture(self.lm, self.pairs, batch_size=self.batch_size)(self.specs)

    def run_only(self) -> None:
        """The same five passes over the same batches, with nothing kept: the first two with logits."""
        headless = self.lm.model.get_submodule(self.lm.architecture.base_model_prefix)
        weights = (Pass("good", "good"), Pass("bad", "good"))
        moments = (Pass("plain", "good"), *weights)
        lengths = [len(pair.sequence(Pass("plain", "good"))) for pair in self.pairs]
        for passes, model in ((weights, self.lm.model), (moments, headless)):
            for indices in length_sorted_batches(lengths, self.batch_size):
                for run in passes:
                    batch = right_padded(
                        [self.pairs[index].sequence(run) for index in indices], self.lm.pad_id, self.lm.device
                    )
                    with torch.inference_mode():
                        model(**batch._asdict(), use_cache=False)
