"""The way of every refit: record and sum, solve, measure, report."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

import torch

from alignez_bake.capture.accumulators import MomentsSum, WorkMemory
from alignez_bake.errors import BadInputError
from alignez_bake.progress import NoProgress
from alignez_bake.refit.measure import measure
from alignez_bake.refit.record import record_edits
from alignez_bake.refit.report import Refit, RefitReport
from alignez_bake.refit.split import HELD_OUT_EVERY, split

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from alignez_bake.capture.statistics import Moments
    from alignez_bake.edit import Edit
    from alignez_bake.edit_plan import EditPlan
    from alignez_bake.language_model.loading import LanguageModel
    from alignez_bake.progress import Advance, Progress
    from alignez_bake.refit.record import EditRows
    from alignez_bake.refit.report import Kind

_MOMENTS_BYTES: Final = 2 * 1024**3
"""Most memory of sums at a time; edits beyond it take a further pass over the sequences."""


class Problem(NamedTuple):
    """One least-squares problem.

    Attributes:
        keys: x, what the fitted map reads, from the rows of the edit: float64 [n, width].
        targets: h, what it is to give: float64 [n, k].
        solve: the new edit, from the moments of z = [x, 1] and D = h.
        width: of x.
    """

    keys: Callable[[EditRows], torch.Tensor]
    targets: Callable[[EditRows], torch.Tensor]
    solve: Callable[[Moments], Edit]
    width: int


def refit(
    lm: LanguageModel,
    plan: EditPlan,
    problems: Mapping[int, Problem],
    sequences: Sequence[Sequence[int]],
    *,
    kind: Kind,
    batch_size: int,
    progress: Progress | None,
) -> Refit:
    """Solve the problems and measure what the solutions are worth.

    All are recorded while the model runs with the edits of `plan`, so that each edit sees what it saw before the
    refit. The sequences are read twice: to sum the moments of the fitting part, and to measure both parts.

    Args:
        lm: the model.
        plan: edits of all positions.
        problems: for places in the plan.
        sequences: token ids; one in four is held out.
        kind: for the reports; `block` records the blocks' inputs.
        batch_size: sequences a forward pass.
        progress: counts sequences.

    Raises:
        BadInputError: sequences that are too few, too short for the widths, or that the model cannot read; edits
            that do not fit the model; activations that are not finite.
    """
    parts = split(lm, sequences)
    for index, problem in problems.items():
        _check_determined(plan.edits[index], problem.width, parts.fitting_tokens)
    told = NoProgress() if progress is None else progress
    chunks = _chunks(plan, problems)
    new: dict[int, Edit] = {}
    with told.task("Fitting edits", len(chunks) * len(parts.fitting)) as advance:
        for chunk in chunks:
            sums = _summed(
                lm, plan, chunk, parts.fitting, block=kind == "block", batch_size=batch_size, advance=advance
            )
            for index, problem in chunk.items():
                new[index] = problem.solve(sums.pop(index).total())
    with told.task("Measuring refitted edits", len(sequences)) as advance:
        fitted = measure(lm, plan, new, parts.fitting, batch_size=batch_size, advance=advance)
        held_out = measure(lm, plan, new, parts.held_out, batch_size=batch_size, advance=advance)
    reports = tuple(
        RefitReport(
            index=index,
            site=edit.site,
            kind=kind,
            rank=edit.rank,
            constant=edit.has_constant,
            held_out=held_out[index].effect(),
            fitted=fitted[index].effect(),
            pre_activation_held_out=held_out[index].pre_activation(),
            pre_activation_fitted=fitted[index].pre_activation(),
        )
        for index, edit in sorted(new.items())
    )
    earlier = plan.provenance.get("refits", [])
    return Refit(
        replace(
            plan,
            edits=tuple(new.get(index, edit) for index, edit in enumerate(plan.edits)),
            provenance={**plan.provenance, "refits": [*earlier, *(report.to_json() for report in reports)]},
        ),
        reports,
    )


def _check_determined(edit: Edit, width: int, tokens: int) -> None:
    """With fewer tokens than unknowns the fit is perfect where it was fitted, and says nothing."""
    if tokens <= width + 1:
        raise BadInputError(
            f"{tokens} tokens do not determine a map of the {width} values that an edit at {edit.site} reads: give "
            f"texts with clearly more than {(width + 2) * HELD_OUT_EVERY // (HELD_OUT_EVERY - 1)} tokens, of which "
            f"one text in {HELD_OUT_EVERY} is held out"
        )


def _chunks(plan: EditPlan, problems: Mapping[int, Problem]) -> list[dict[int, Problem]]:
    """Problems whose sums fit into memory together, at least one at a time."""
    chunks: list[dict[int, Problem]] = [{}]
    used = 0
    for index, problem in problems.items():
        size = 8 * (problem.width + 1) * (problem.width + 1 + plan.edits[index].rank)
        if chunks[-1] and used + size > _MOMENTS_BYTES:
            chunks.append({})
            used = 0
        chunks[-1][index] = problem
        used += size
    return chunks


def _summed(
    lm: LanguageModel,
    plan: EditPlan,
    problems: Mapping[int, Problem],
    sequences: Sequence[Sequence[int]],
    *,
    block: bool,
    batch_size: int,
    advance: Advance,
) -> dict[int, MomentsSum]:
    work = WorkMemory()
    sums = {index: MomentsSum(work) for index in problems}

    def add(index: int, rows: EditRows) -> None:
        keys = problems[index].keys(rows)
        with_one = torch.cat([keys, keys.new_ones(keys.shape[0], 1)], dim=1)
        sums[index].add(with_one, problems[index].targets(rows), None, None)

    record_edits(lm, plan, problems, sequences, add, batch_size=batch_size, advance=advance, block=block)
    return sums
