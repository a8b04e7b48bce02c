"""The sums over tokens that least squares needs, with memory that is bounded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import torch

from alignez_bake.capture.accumulators import MomentsSum, WorkMemory
from alignez_bake.refit.record import record_edits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from alignez_bake.capture.statistics import Moments
    from alignez_bake.edit_plan import EditPlan
    from alignez_bake.language_model.loading import LanguageModel
    from alignez_bake.progress import Progress
    from alignez_bake.refit.record import EditRows

_SUMS_BYTES: Final = 2 * 1024**3
"""Most memory of sums at a time; regressions beyond it take a further pass over the sequences."""


class Rows(NamedTuple):
    """z and D of one batch, float64 [n, d_z] and [n, m]."""

    z: torch.Tensor
    targets: torch.Tensor


class Regression(NamedTuple):
    """One least-squares problem on what an edit reads.

    Attributes:
        place: of the edit in the plan.
        width: d_z.
        targets: m.
        rows: z and D, from what the recorder hands over.
    """

    place: int
    width: int
    targets: int
    rows: Callable[[EditRows], Rows]

    @property
    def size(self) -> int:
        """Bytes of the sums."""
        return 8 * self.width * (self.width + self.targets)


def with_one(x: torch.Tensor) -> torch.Tensor:
    """[x, 1]."""
    return torch.cat([x, x.new_ones(x.shape[0], 1)], dim=1)


def iter_moments(
    lm: LanguageModel,
    plan: EditPlan,
    regressions: Sequence[Regression],
    sequences: Sequence[Sequence[int]],
    *,
    batch_size: int,
    block: bool,
    progress: Progress,
) -> Iterator[tuple[int, Moments]]:
    """Sum the moments of every regression over all tokens.

    Args:
        lm: the model, which runs with the plan's edits.
        plan: as `record_edits`.
        regressions: any number at an edit.
        sequences: token ids.
        batch_size: sequences a forward pass.
        block: whether the blocks' inputs are read.
        progress: counts sequences.

    Yields:
        The number of a regression and its moments, in order.
    """
    chunks = _chunks(regressions)
    with progress.task("Fitting edits", len(chunks) * len(sequences)) as advance:
        for chunk in chunks:
            work = WorkMemory()
            sums = {number: MomentsSum(work) for number in chunk}
            at: dict[int, list[int]] = {}
            for number in chunk:
                at.setdefault(regressions[number].place, []).append(number)

            def add(
                place: int, rows: EditRows, sums: dict[int, MomentsSum] = sums, at: dict[int, list[int]] = at
            ) -> None:
                for number in at[place]:
                    z, targets = regressions[number].rows(rows)
                    sums[number].add(z, targets, None, None)

            record_edits(lm, plan, at, sequences, add, batch_size=batch_size, advance=advance, block=block)
            for number in chunk:
                yield number, sums.pop(number).total()


def _chunks(regressions: Sequence[Regression]) -> list[list[int]]:
    """Numbers of regressions whose sums fit into memory together, at least one at a time."""
    chunks: list[list[int]] = []
    used = 0
    for number, regression in enumerate(regressions):
        if not chunks or used + regression.size > _SUMS_BYTES:
            chunks.append([])
            used = 0
        chunks[-1].append(number)
        used += regression.size
    return chunks
