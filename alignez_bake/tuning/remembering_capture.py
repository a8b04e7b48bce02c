"""One capture for many candidates: what was recorded of the unedited model is recorded once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar, cast

from alignez_bake.capture.spec import CONTEXTS, MomentsSpec, RowsSpec
from alignez_bake.capture.statistics import ActivationStatistics

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from alignez_bake.capture.recorder import MapReading
    from alignez_bake.capture.spec import CaptureSpec, Context
    from alignez_bake.edit_plan import EditPlan
    from alignez_bake.language_model.readout import Readout
    from alignez_bake.methods.protocol import CaptureFunction

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class _Remembered(ActivationStatistics):
    """Statistics of several recordings, each with a memory of its own."""

    sources: tuple[ActivationStatistics, ...] = ()

    def release(self) -> None:
        """As `ActivationStatistics.release`, of every recording."""
        for source in self.sources:
            source.release()


class RememberingCapture:
    """A capture that keeps what it has recorded without edits, by spec; with edits it passes on and keeps nothing.

    A spec names its statistics completely, so what is remembered is what would be recorded again. Memory: all
    statistics that were ever asked for, until the object goes: see `Rows` and `Moments` for how much that is; and what
    methods keep by `once`, of contrastive decoding the rows of the last layer for each choice of layers.
    """

    def __init__(self, capture: CaptureFunction) -> None:
        """Record by `capture`, over one set of pairs."""
        self._capture = capture
        self._recorded: dict[CaptureSpec, ActivationStatistics] = {}
        self._made: dict[Hashable, object] = {}

    def left_alone(
        self, readings: Sequence[MapReading], plan_so_far: EditPlan | None = None
    ) -> Mapping[MapReading, NDArray[np.float32]] | None:
        """As the capture that it wraps."""
        return self._capture.left_alone(readings, plan_so_far)

    def readout(self) -> Readout:
        """As the capture that it wraps."""
        return self._capture.readout()

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` gave first for an equal key."""
        if key not in self._made:
            self._made[key] = make()
        return cast("T", self._made[key])

    def __call__(
        self,
        specs: Sequence[CaptureSpec],
        plan_so_far: EditPlan | None = None,
        *,
        edited: Collection[Context] = CONTEXTS,
    ) -> ActivationStatistics:
        """As the capture that it wraps; specs that are new run together, in one call."""
        if plan_so_far is not None and plan_so_far.edits:
            return self._capture(specs, plan_so_far, edited=edited)
        missing = [spec for spec in dict.fromkeys(specs) if spec not in self._recorded]
        if missing:
            self._recorded.update(dict.fromkeys(missing, self._capture(missing)))
        found = {spec: self._recorded[spec] for spec in specs}
        moments = {spec: source for spec, source in found.items() if isinstance(spec, MomentsSpec)}
        return _Remembered(
            {spec: source.rows[spec] for spec, source in found.items() if isinstance(spec, RowsSpec)},
            {spec: source.moments[spec] for spec, source in moments.items() if spec in source.moments},
            {spec: source.token_rows[spec] for spec, source in moments.items() if spec in source.token_rows},
            sources=tuple(dict.fromkeys(found.values())),
        )
