"""The way of every refit: split, solve, measure, choose, report."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from alignez_bake.errors import BadInputError
from alignez_bake.refit.measure import measure
from alignez_bake.refit.report import Refit, RefitReport
from alignez_bake.refit.split import HELD_OUT_EVERY, split

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from alignez_bake.edit import Edit
    from alignez_bake.edit_plan import EditPlan
    from alignez_bake.language_model.loading import LanguageModel
    from alignez_bake.progress import Progress
    from alignez_bake.refit.report import Kind

    Solve = Callable[[Sequence[Sequence[int]]], Mapping[int, Sequence[Edit]]]


def refit(
    lm: LanguageModel,
    plan: EditPlan,
    widths: Mapping[int, int],
    solve: Solve,
    sequences: Sequence[Sequence[int]],
    *,
    kind: Kind,
    batch_size: int,
    progress: Progress,
) -> Refit:
    """Solve for new edits and measure what they are worth.

    Everything is recorded while the model runs with the edits of `plan`, so that each edit sees what it saw before
    the refit. Where there are several candidates for an edit, the one whose effect is closest at the tokens that
    were fitted is taken; held-out tokens have no say.

    Args:
        lm: the model.
        plan: edits of all positions.
        widths: for the place of each edit to refit, of what its new map reads.
        solve: given the fitting part, candidates for each of these places, at least one.
        sequences: token ids; one in four is held out.
        kind: for the reports.
        batch_size: sequences a forward pass.
        progress: counts sequences.

    Raises:
        BadInputError: sequences that are too few, too short for the widths, or that the model cannot read; edits
            that do not fit the model; activations that are not finite.
    """
    parts = split(lm, sequences)
    for place, width in widths.items():
        _check_determined(plan.edits[place], width, parts.fitting_tokens)
    candidates = solve(parts.fitting)
    with progress.task("Measuring refitted edits", len(sequences)) as advance:
        tried = measure(lm, plan, candidates, parts.fitting, batch_size=batch_size, advance=advance)
        fitted = {place: min(each, key=lambda one: one.effect().residual_rms) for place, each in tried.items()}
        chosen = {place: [best.new] for place, best in fitted.items()}
        held_out = measure(lm, plan, chosen, parts.held_out, batch_size=batch_size, advance=advance)
    reports = tuple(
        RefitReport(
            index=place,
            site=best.new.site,
            kind=kind,
            rank=best.new.rank,
            constant=best.new.has_constant,
            held_out=held_out[place][0].effect(),
            fitted=best.effect(),
            pre_activation_held_out=held_out[place][0].pre_activation(),
            pre_activation_fitted=best.pre_activation(),
        )
        for place, best in sorted(fitted.items())
    )
    earlier = plan.provenance.get("refits", [])
    return Refit(
        replace(
            plan,
            edits=tuple(fitted[place].new if place in fitted else edit for place, edit in enumerate(plan.edits)),
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
