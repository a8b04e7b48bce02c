"""The best affine map in place of a gate, so that a one-sided or bounded edit can be folded.

A gated edit adds to its site, with σ its strength and h_t = g(Rᵀ r_t + s) its hidden values at token t,

    δ_t = σ (L h_t + c)

**Where a constant has a home.** The affine map N r + n that minimises Σ‖δ_t - N r_t - n‖² is, with bars for means
and Cov for sums of products of deviations from them,

    N = Cov(δ, r) Cov(r)⁻¹ = σ L Cov(h, r) Cov(r)⁻¹ = σ L Mᵀ,      Mᵀ = Cov(h, r) Cov(r)⁻¹
    n = δ̄ - N r̄ = σ (L h̄ + c) - σ L Mᵀ r̄ = σ (L m + c),           m = h̄ - Mᵀ r̄

So the left factor of the best map is L itself, c stays as it is, and (M, m) is the plain regression of the k hidden
values on r. That the error counts as ‖L e‖², which couples the k values, changes nothing: all are regressed on the
same r, so the gradient is σ² LᵀL Σ_t (h_t - Mᵀ r_t - m) [r_t; 1]ᵀ, and the regression makes the sum itself zero. If
L has full column rank, LᵀL is invertible and there is no other solution; else others differ from M by what L maps
to zero, and give the same map. The result has the gate `identity` and the same L, c, σ and rank.

**Where it has none**, N r must do it all, c included: that is (2) of `least_squares` with the target δ,

    N = Σ δ rᵀ (Σ r rᵀ)⁻¹ = σ (L Mᵀ + c uᵀ),       M = (Σ r rᵀ)⁻¹ Σ r hᵀ,       u = (Σ r rᵀ)⁻¹ Σ r

u being the linear map that comes closest to the constant 1. The result has no offset and no bias; where c is not
zero its left is [L, c] and its right [M, u], one column more than before.

What an edit reads is recorded where the model runs with the plan as it was. Once folded, a later edit reads what
linearised ones before it left, which is close to it as far as the explained variance goes; the comparison of whole
models shows what that amounts to.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from alignez_bake.errors import BadInputError
from alignez_bake.progress import NoProgress
from alignez_bake.refit.fit import refit
from alignez_bake.refit.least_squares import fit_affine, fit_through_origin
from alignez_bake.refit.measure import hidden_values
from alignez_bake.refit.report import Refit
from alignez_bake.refit.sums import Regression, Rows, iter_moments, with_one

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from alignez_bake.capture.statistics import Moments
    from alignez_bake.edit import Edit
    from alignez_bake.edit_plan import EditPlan
    from alignez_bake.language_model.loading import LanguageModel
    from alignez_bake.progress import Progress
    from alignez_bake.site import Site


def linearise(
    lm: LanguageModel,
    plan: EditPlan,
    sequences: Sequence[Sequence[int]],
    *,
    batch_size: int,
    progress: Progress | None = None,
    allow_constant: Callable[[Site], bool],
) -> Refit:
    """Replace every gated edit by the best affine map of what it reads.

    Args:
        lm: the model that the plan is for.
        plan: what to linearise; linear edits stay as they are and have no report.
        sequences: distinct texts as token ids; one in four is held out.
        batch_size: sequences a forward pass.
        progress: counts sequences.
        allow_constant: whether an edit at a site may add a constant, because its map has a bias or can get one;
            else the best linear map through the origin is taken.

    Returns:
        The linearised plan, and how much of each effect it keeps.

    Raises:
        BadInputError: an edit that no weight can hold even when it is linear; and as `refit`.
    """
    gated = []
    for index, edit in enumerate(plan.edits):
        if edit.positions != "all":
            raise BadInputError(
                f"the edit at {edit.site} acts at the last position alone, and a weight acts at all: it cannot be "
                "linearised; bake it as an inserted module"
            )
        if edit.reads == "block":
            raise BadInputError(
                f"the edit at {edit.site} reads what enters the block, which is not its map's input, so it does not "
                "fold even when it is linear: bake it as hidden units added to the MLP, or as an inserted module"
            )
        if edit.gate != "identity":
            gated.append(index)
    if not gated:
        return Refit(plan, ())
    told = NoProgress() if progress is None else progress
    regressions = [_regression(place, plan.edits[place]) for place in gated]

    def solve(fitting: Sequence[Sequence[int]]) -> dict[int, list[Edit]]:
        found: dict[int, list[Edit]] = {}
        for number, moments in iter_moments(
            lm, plan, regressions, fitting, batch_size=batch_size, block=False, progress=told
        ):
            edit = plan.edits[gated[number]]
            linear = _with_constant if allow_constant(edit.site) else _without_constant
            found[gated[number]] = [linear(edit, moments)]
        return found

    widths = {regression.place: regression.width - 1 for regression in regressions}
    return refit(lm, plan, widths, solve, sequences, kind="linearised", batch_size=batch_size, progress=told)


def _regression(place: int, edit: Edit) -> Regression:
    """The hidden values on [r, 1]."""
    assert edit.d_read is not None
    return Regression(
        place,
        width=edit.d_read + 1,
        targets=edit.rank,
        rows=lambda rows: Rows(with_one(rows.read), hidden_values(edit, rows.read, edit.gate)),
    )


def _with_constant(edit: Edit, moments: Moments) -> Edit:
    fit = fit_affine(edit.site, moments)
    return replace(edit, gate="identity", right=fit.matrix, offset=fit.constant)


def _without_constant(edit: Edit, moments: Moments) -> Edit:
    right, of_one = fit_through_origin(edit.site, moments)
    left = edit.left
    if edit.bias is not None and edit.bias.any():
        assert left is not None
        left, right = np.column_stack([left, edit.bias]), np.column_stack([right, of_one])
    return replace(edit, gate="identity", left=left, right=right, offset=None, bias=None)
