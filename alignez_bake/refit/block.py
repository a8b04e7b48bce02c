"""Edits at the MLP writer made to read what enters the MLP, so that hidden units of the MLP can carry them.

Hidden units added to an MLP see its input x alone, so L g(t) can be made by k of them if t is an affine map of x.
The edit's own pre-activation t = Rᵀ r + s is one of r: of the writer's output, or of its input. Least squares gives

    minimise Σ‖t_t - R_bᵀ x_t - s_b‖²        ((1) of `least_squares` with the target t)

and the refitted edit adds strength · (L g(R_bᵀ x + s_b) + c). It is t that is fitted, since that has a closed form;
what it is worth is said by how much of the effect is kept, which the gate can make better (where both t and its fit
lie on the flat side of a relu) or worse than the fit of t.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from alignez_bake.errors import BadInputError
from alignez_bake.refit.fit import Problem, refit
from alignez_bake.refit.least_squares import fit_affine
from alignez_bake.refit.measure import hidden_values
from alignez_bake.refit.report import Refit

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from alignez_bake.capture.statistics import Moments
    from alignez_bake.edit import Edit
    from alignez_bake.edit_plan import EditPlan
    from alignez_bake.language_model.loading import LanguageModel
    from alignez_bake.progress import Progress
    from alignez_bake.refit.record import EditRows


def refit_block(
    lm: LanguageModel,
    plan: EditPlan,
    sequences: Sequence[Sequence[int]],
    *,
    batch_size: int,
    progress: Progress | None = None,
) -> Refit:
    """Replace every edit at the MLP writer by one with the same L, g and c that reads the MLP's input.

    Pure shifts and edits that read the block already stay as they are, and so do linear edits at other sites, which
    fold without hidden units; they have no report.

    Args:
        lm: the model that the plan is for.
        plan: what to refit.
        sequences: distinct texts as token ids; one in four is held out.
        batch_size: sequences a forward pass.
        progress: counts sequences.

    Returns:
        The plan whose edits at `mlp_write` read `block`, and how much of each pre-activation and effect it keeps.

    Raises:
        BadInputError: a gated edit at another site, or one of the last position alone; and as `refit`.
    """
    places = [index for index, edit in enumerate(plan.edits) if _is_refitted(edit)]
    if not places:
        return Refit(plan, ())
    width = int(lm.model.config.hidden_size)  # the block reads the residual stream after its norm
    problems = {index: _problem(plan.edits[index], width) for index in places}
    return refit(lm, plan, problems, sequences, kind="block", batch_size=batch_size, progress=progress)


def _is_refitted(edit: Edit) -> bool:
    if edit.positions != "all":
        raise BadInputError(
            f"the edit at {edit.site} acts at the last position alone, and hidden units of the MLP act at all: it "
            "cannot be refitted; bake it as an inserted module"
        )
    if edit.site.kind != "mlp_write":
        if edit.is_linear and edit.reads != "block":
            return False
        what = f"gate {edit.gate!r}" if edit.gate != "identity" else "reads 'block'"
        raise BadInputError(
            f"the edit at {edit.site} ({what}) cannot be carried by hidden units of the MLP, which change the output "
            "of the MLP's writer alone (mlp_write): linearise it, or bake it as an inserted module"
        )
    return edit.rank > 0 and edit.reads != "block"


def _problem(edit: Edit, width: int) -> Problem:
    return Problem(
        keys=_block_of,
        targets=lambda rows: hidden_values(edit, rows.read, "identity"),
        solve=lambda moments: _reading_the_block(edit, moments),
        width=width,
    )


def _block_of(rows: EditRows) -> torch.Tensor:
    assert rows.block is not None
    return rows.block


def _reading_the_block(edit: Edit, moments: Moments) -> Edit:
    fit = fit_affine(edit.site, moments)
    return replace(edit, reads="block", right=fit.matrix, offset=fit.constant)
