"""A capture that returns planted activations instead of running a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from alignez_bake.capture.spec import MomentsSpec, RowsSpec
from alignez_bake.capture.statistics import ActivationStatistics, Moments, Rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from alignez_bake.capture.spec import CaptureSpec
    from alignez_bake.edit_plan import EditPlan
    from alignez_bake.site import Site

WIDTH = 12
LAYERS = (0, 2)


class PlantedRows:
    """Good and bad rows by site, for methods that ask for rows; remembers what was asked for."""

    def __init__(self, rows: Mapping[Site, tuple[NDArray[np.float64], NDArray[np.float64]]]) -> None:
        self.rows = rows
        self.asked: list[CaptureSpec] = []

    def __call__(self, specs: Sequence[CaptureSpec], plan_so_far: EditPlan | None = None) -> ActivationStatistics:
        self.asked += specs
        found = {}
        for spec in specs:
            assert isinstance(spec, RowsSpec)
            good, bad = self.rows[spec.site]
            found[spec] = Rows(good if spec.answer == "good" else bad)
        return ActivationStatistics(found, {})


class PlantedMoments:
    """Moments of Z and D by site, for methods that ask for moments."""

    def __init__(self, pairs: Mapping[Site, tuple[NDArray[np.float64], NDArray[np.float64]]]) -> None:
        self.pairs = pairs
        self.asked: list[CaptureSpec] = []

    def __call__(self, specs: Sequence[CaptureSpec], plan_so_far: EditPlan | None = None) -> ActivationStatistics:
        self.asked += specs
        found = {}
        for spec in specs:
            assert isinstance(spec, MomentsSpec)
            found[spec] = Moments.of(*self.pairs[spec.site])
        return ActivationStatistics({}, found)


def orthonormal(rng: np.random.Generator, width: int, rank: int) -> NDArray[np.float64]:
    """A random orthonormal basis [width, rank]."""
    return np.linalg.qr(rng.normal(size=(width, rank)))[0]


def edited(rows: NDArray[np.float64], edits: Sequence, read: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """Rows after the edits in order, by the one formula of the record."""
    from alignez_bake.edit import edit_delta

    for edit in edits:
        source = rows if edit.reads == "output" else read
        rows = rows + edit_delta(edit.tensors(lambda array: array), edit.gate, edit.strength, source)
    return rows
