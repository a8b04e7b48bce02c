"""Variants of the ridges that see neutral texts, so as to leave them alone.

With Z and D of a ridge, and N [m, d_in] the inputs of the same map at the tokens of neutral texts:

    keys projected   Z <- Z (I - Q Qᵀ), Q the top p right singular vectors of N: the edit reads nothing along them
    neutral rows     Z <- [Z; √(ρ n/m) N], D <- [D; 0]: what the edit adds there is paid for, as at ρ n more tokens

Both change the moments ZᵀZ and ZᵀD alone, so the methods are fitted as they are, to a capture that gives others.

*Everywhere*: beside the moments, what `contrastive_decoding` reads in the last layer has rows of the neutral texts as
well. The personas are the base there, so they disagree about nothing (u_t = 0), no answer follows, and the fits of the
last layer and of the head keep the base's predictions, as `methods.readout_fit` has it. These rows join those that the
weights' 90th percentile is taken over, so the others' weights rise a little.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from alignez_bake.capture.recorder import MapReading
from alignez_bake.capture.spec import CONTEXTS
from alignez_bake.capture.statistics import ActivationStatistics, Moments, Rows, TokenRows
from alignez_bake.tuning.neutral import shipped_neutral_texts
from benchmarks.variants_bed import fitted

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Mapping, Sequence

    from numpy.typing import NDArray

    from alignez_bake.capture.spec import CaptureSpec, Context
    from alignez_bake.edit_plan import EditPlan
    from alignez_bake.language_model.readout import Readout
    from alignez_bake.methods.protocol import CaptureFunction, Method
    from benchmarks.variants_bed import Made, VariantBed

    Float64Array = NDArray[np.float64]

T = TypeVar("T")
Change = Callable[[Moments, "Float64Array"], Moments]
"""Moments as a ridge is to see them, of those that were recorded and of N."""


def without_directions(moments: Moments, neutral: Float64Array, *, directions: int) -> Moments:
    """Keys projected: p is `directions`, or one less than Z is wide where that is less."""
    p = min(directions, moments.d_in - 1)
    _, basis = np.linalg.eigh(neutral.T @ neutral)
    rest = basis[:, : moments.d_in - p]
    kept = rest @ rest.T
    return Moments(kept @ moments.ztz @ kept, kept @ moments.ztd, kept @ moments.z_sum, moments.d_square, moments.count)


def with_rows(moments: Moments, neutral: Float64Array, *, worth: float) -> Moments:
    """Neutral rows: ρ is `worth`."""
    return moments.with_nothing_wanted(neutral, worth)


@dataclass(frozen=True)
class ChangedCapture:
    """A capture whose moments are changed in sight of neutral texts.

    Attributes:
        capture: records.
        bed: has the neutral texts.
        change: of moments.
        everywhere: whether rows of single tokens are followed by those of the neutral texts.
    """

    capture: CaptureFunction
    bed: VariantBed
    change: Change
    everywhere: bool = False

    def __call__(
        self,
        specs: Sequence[CaptureSpec],
        plan_so_far: EditPlan | None = None,
        *,
        edited: Collection[Context] = CONTEXTS,
    ) -> ActivationStatistics:
        """What is recorded, moments changed; the edits are in place on neutral texts as they are without persona."""
        found = self.capture(specs, plan_so_far, edited=edited)
        moments = {}
        for spec in (*found.moments, *found.token_rows):
            recorded = found.sums_of(spec)
            neutral = self.bed.neutral_rows(MapReading(spec.site, spec.key.side), plan_so_far)
            sums = recorded.moments() if isinstance(recorded, TokenRows) else recorded
            moments[spec] = self.change(sums, neutral)
        if not self.everywhere:
            return ActivationStatistics(found.rows, moments)
        rows = {}
        for of_rows, without in found.rows.items():
            # Of neutral texts there is no persona: after either one the base is what it is without.
            plan = plan_so_far if of_rows.reading.context == "plain" and "plain" in edited else None
            more = self.bed.neutral_rows(MapReading(of_rows.site, of_rows.reading.side), plan)
            rows[of_rows] = without.merged_with(Rows(more, np.zeros(len(more), dtype=np.bool_)))
        return ActivationStatistics(rows, moments)

    def left_alone(
        self, readings: Sequence[MapReading], plan_so_far: EditPlan | None = None
    ) -> Mapping[MapReading, NDArray[np.float32]] | None:
        """As it is: these variants bring their own."""
        return self.capture.left_alone(readings, plan_so_far)

    def readout(self) -> Readout:
        """As it is."""
        return self.capture.readout()

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """Nothing is kept."""
        del key
        return make()


def in_sight_of_neutral(
    bed: VariantBed,
    method: Method,
    strength: float,
    change: Change,
    *,
    everywhere: bool = False,
    shipped: int | None = None,
) -> Made:
    """A method, with the moments of every ridge in it changed.

    Args:
        bed: world and seed.
        method: the method.
        strength: its own.
        change: of moments.
        everywhere: as `ChangedCapture` has it.
        shipped: read every so manieth of the tool's own neutral texts; None: the world's.

    Raises:
        BadInputError: as the method.
    """
    seen = bed if shipped is None else replace(bed, fitted_on=tuple(shipped_neutral_texts()[::shipped]))
    return fitted(bed, method, strength, seen_through=lambda capture: ChangedCapture(capture, seen, change, everywhere))
