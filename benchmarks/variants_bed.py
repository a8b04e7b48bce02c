"""What a variant of a method is made from: a world, a seed's pairs, and neutral texts that no figure is measured on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from alignez_bake.capture.left_alone import rows_left_alone
from alignez_bake.edit_plan import EditPlan
from alignez_bake.methods.protocol import MethodSettings
from alignez_bake.pipeline import read_pairs_of
from benchmarks.measuring import WorldBench
from benchmarks.stopwatch import Stopwatch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from alignez_bake.capture.recorder import MapReading
    from alignez_bake.language_model.loading import LanguageModel
    from alignez_bake.methods.protocol import CaptureFunction, Method
    from alignez_bake.pipeline import Readings
    from alignez_bake.preference_pairs.records import PairRecord
    from alignez_bake.prompts.objective import Objective
    from benchmarks.world_folder import WorldFolder

    Float64Array = NDArray[np.float64]

STRENGTH: Final = 1.5
"""Of `contrastive_decoding`, plain and in every variant."""


class Made(NamedTuple):
    """A variant's result.

    Attributes:
        lm: the model that the edits belong to: the base, or what a first round made of it.
        plan: the edits.
        pairs: that they were fitted to.
    """

    lm: LanguageModel
    plan: EditPlan
    pairs: int


@dataclass(frozen=True, eq=False)
class VariantBed:
    """One world and one seed.

    Attributes:
        bench: measures on every second neutral text of the world.
        fitted_on: the other neutral texts, which variants may read.
        seed: of pairs and samples.
    """

    bench: WorldBench
    fitted_on: tuple[str, ...]
    seed: int

    @property
    def lm(self) -> LanguageModel:
        """The base."""
        return self.bench.base

    @property
    def objective(self) -> Objective:
        """What is to be aligned: the world's one objective."""
        (objective,) = self.bench.world.asked.objectives
        return objective

    @property
    def layers(self) -> tuple[int, ...]:
        """All of the base."""
        return tuple(range(self.lm.folder.num_layers))

    @property
    def settings(self) -> MethodSettings:
        """Every method's own defaults."""
        return MethodSettings(seed=self.seed, objective=self.objective.name)

    @property
    def records(self) -> tuple[PairRecord, ...]:
        """The base's own pairs of this seed."""
        return self.bench.pairs(self.seed).records

    def readings(self, lm: LanguageModel | None = None, records: Sequence[PairRecord] | None = None) -> Readings:
        """Captures of a model over pairs; of the base over its own ones unless given.

        Raises:
            BadInputError: too few pairs.
        """
        return read_pairs_of(
            self.lm if lm is None else lm,
            self.records if records is None else records,
            (self.objective,),
            self.bench.form,
            joint=False,
            batch_size=self.bench.batch_size,
            progress=Stopwatch(),
        )

    def neutral_rows(self, reading: MapReading, plan: EditPlan | None = None) -> Float64Array:
        """One side of a map at all tokens of the neutral texts [tokens, width], with a plan's edits in place."""
        sequences = [self.bench.form.text_ids(text) for text in self.fitted_on]
        found = rows_left_alone(self.lm, sequences, [reading], plan, batch_size=self.bench.batch_size)
        return found[reading].astype(np.float64)


def fitted(
    bed: VariantBed,
    method: Method,
    strength: float,
    *,
    lm: LanguageModel | None = None,
    records: Sequence[PairRecord] | None = None,
    layers: Sequence[int] | None = None,
    seen_through: Callable[[CaptureFunction], CaptureFunction] = lambda capture: capture,
) -> Made:
    """A method's edits.

    Args:
        bed: world and seed.
        method: the method.
        strength: its own.
        lm: the model that it is fitted to; the base unless given.
        records: pairs; the base's own ones unless given.
        layers: that are edited; all unless given.
        seen_through: what the method is given instead of the capture.

    Raises:
        BadInputError: too few pairs, or as the method.
    """
    lm = bed.lm if lm is None else lm
    readings = bed.readings(lm, records)
    name = bed.objective.name
    settings = replace(bed.settings, strength=strength)
    found = method.fit(
        seen_through(readings.captures[name]), lm.architecture, bed.layers if layers is None else layers, settings
    )
    return Made(lm, EditPlan(found.edits), readings.filters[name].kept)


def bench_and_texts(world: WorldFolder, out: Path, batch_size: int) -> tuple[WorldBench, tuple[str, ...]]:
    """A bench that measures on every second neutral text, and the texts that it leaves to the fits."""
    return WorldBench(replace(world, neutral=world.neutral[1::2]), out, batch_size), world.neutral[::2]
