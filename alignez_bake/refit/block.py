"""Edits at the MLP writer made to read what enters the MLP, so that hidden units of the MLP can carry them.

Hidden units added to an MLP see its input x alone. They can make strength · (L g(f) + c) of any affine f = R_bᵀ x + s_b
[k], and are to come close to the edit's own, which has g(t) with t = Rᵀ r + s in place of g(f). Each of the k units
is fitted by itself: let t_t, f_t be its values at token t, h_t = g(t_t), z_t = [x_t, 1], and f_t = z_tᵀθ.

**Least squares on t**, Σ (t_t - z_tᵀθ)², has a closed form and is exact where t is affine in x. Else it may spend
itself where the gate is flat, on tokens whose t means nothing to the effect: on trained models the result was often
worse than no edit at all (docs/decisions/refit.md has figures).

**Least squares on h**, Σ (h_t - z_tᵀθ)², closed form again, looks where the effect is, but forgets that g comes after.

**With the gate.** g rises and nowhere falls, so with G' = g the loss

    Λ(θ) = Σ_t G(z_tᵀθ) - h_t z_tᵀθ,      gradient Σ z_t (g(f_t) - h_t),      Hessian Σ g'(f_t) z_t z_tᵀ

is convex, and at its minimum what is left of h is orthogonal to everything affine in x: the normal equations with the
gate in place. (For the logistic g this is logistic regression.) Where t is affine in x, f = t is a minimum. A Newton
step is weighted least squares of the working residual e_t = (h_t - g(f_t)) / w_t with the weights w_t = g'(f_t):

    θ <- θ + argmin_η Σ w_t (e_t - z_tᵀη)²

in closed form from sums over tokens. To the weights a small δ is added, so that the step exists where the gate is
flat; that leaves the minimum where it is. Six steps begin at the least squares on h.

Least squares on t, on h, and the six iterates are candidates; the one whose effect, all k units through L, is
closest at the fitted tokens is taken. An edit with the gate `identity` has t = h, and least squares is all there is.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from alignez_bake.errors import BadInputError
from alignez_bake.progress import NoProgress
from alignez_bake.refit.fit import refit
from alignez_bake.refit.least_squares import AffineMap, fit_affine
from alignez_bake.refit.measure import hidden_values
from alignez_bake.refit.report import Refit
from alignez_bake.refit.sums import Regression, Rows, iter_moments, with_one

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from alignez_bake.edit import Edit, Gate
    from alignez_bake.edit_plan import EditPlan
    from alignez_bake.language_model.loading import LanguageModel
    from alignez_bake.progress import Progress
    from alignez_bake.refit.record import EditRows

_STEPS: Final = 6
_DAMPING: Final = 1e-3
"""δ; the slope of a gate is at most 1. Ten times more made the steps clearly slower."""

_SLOPES: Final[Mapping[Gate, Callable[[torch.Tensor], torch.Tensor]]] = {
    "relu": lambda f: (f > 0).to(f.dtype),
    "tanh": lambda f: 1.0 - f.tanh().square(),
}


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
        The plan whose edits at `mlp_write` read `block`, and how much of each effect, and of each pre-activation, it
        keeps. A share below 0 says that no edit at all would be closer.

    Raises:
        BadInputError: a gated edit at another site, or one of the last position alone; and as `refit`.
    """
    places = [place for place, edit in enumerate(plan.edits) if _is_refitted(edit)]
    if not places:
        return Refit(plan, ())
    told = NoProgress() if progress is None else progress
    width = int(lm.model.config.hidden_size)  # the block reads the residual stream after its norm

    def solve(fitting: Sequence[Sequence[int]]) -> dict[int, list[Edit]]:
        solver = _BlockSolver(lm, plan, fitting, width=width, batch_size=batch_size, progress=told)
        return solver.candidates(places)

    widths = dict.fromkeys(places, width)
    return refit(lm, plan, widths, solve, sequences, kind="block", batch_size=batch_size, progress=told)


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


class _BlockSolver:
    """Candidates for (R_b, s_b), from the fitting part of the sequences."""

    def __init__(
        self,
        lm: LanguageModel,
        plan: EditPlan,
        fitting: Sequence[Sequence[int]],
        *,
        width: int,
        batch_size: int,
        progress: Progress,
    ) -> None:
        self._lm, self._plan, self._fitting = lm, plan, fitting
        self._width, self._batch_size, self._progress = width, batch_size, progress

    def candidates(self, places: Sequence[int]) -> dict[int, list[Edit]]:
        """For each place: least squares on t; for a gated edit also on h, and the Newton steps from there."""
        found: dict[int, list[Edit]] = {}
        for place, fit in zip(places, self._solved([self._least_squares(place) for place in places]), strict=True):
            edit = self._plan.edits[place]
            on_t, on_h = slice(0, edit.rank), slice(edit.rank, None)
            found[place] = [_reading_the_block(edit, AffineMap(fit.matrix[:, on_t], fit.constant[on_t]))]
            if edit.gate != "identity":
                found[place].append(_reading_the_block(edit, AffineMap(fit.matrix[:, on_h], fit.constant[on_h])))
        gated = [place for place in places if self._plan.edits[place].gate != "identity"]
        units = [(place, unit) for place in gated for unit in range(self._plan.edits[place].rank)]
        for _ in range(_STEPS if gated else 0):
            steps = self._solved([self._newton(place, unit, found[place][-1]) for place, unit in units])
            step_of = dict(zip(units, steps, strict=True))
            for place in gated:
                last = found[place][-1]
                assert last.right is not None
                assert last.offset is not None
                mine = [step_of[place, unit] for unit in range(last.rank)]
                matrix = last.right.astype(np.float64) + np.column_stack([step.matrix for step in mine])
                constant = last.offset.astype(np.float64) + np.concatenate([step.constant for step in mine])
                found[place].append(_reading_the_block(last, AffineMap(matrix, constant)))
        return found

    def _solved(self, regressions: Sequence[Regression]) -> list[AffineMap]:
        moments = iter_moments(
            self._lm,
            self._plan,
            regressions,
            self._fitting,
            batch_size=self._batch_size,
            block=True,
            progress=self._progress,
        )
        return [fit_affine(self._plan.edits[regressions[number].place].site, each) for number, each in moments]

    def _least_squares(self, place: int) -> Regression:
        """t, and for gated edits h, on [x, 1]."""
        edit = self._plan.edits[place]

        def rows(recorded: EditRows) -> Rows:
            targets = hidden_values(edit, recorded.read, "identity")
            if edit.gate != "identity":
                targets = torch.cat([targets, hidden_values(edit, recorded.read, edit.gate)], dim=1)
            return Rows(with_one(_block_of(recorded)), targets)

        return Regression(place, self._width + 1, edit.rank * (1 if edit.gate == "identity" else 2), rows)

    def _newton(self, place: int, unit: int, current: Edit) -> Regression:
        """The working residual of one unit on [x, 1], both times √w."""
        edit = self._plan.edits[place]

        def rows(recorded: EditRows) -> Rows:
            x = _block_of(recorded)
            f = hidden_values(current, x, "identity")[:, unit]
            missing = hidden_values(edit, recorded.read, edit.gate) - hidden_values(current, x, edit.gate)
            root = (_SLOPES[edit.gate](f) + _DAMPING).sqrt()[:, None]
            return Rows(with_one(x) * root, missing[:, unit : unit + 1] / root)

        return Regression(place, self._width + 1, 1, rows)


def _block_of(rows: EditRows) -> torch.Tensor:
    assert rows.block is not None
    return rows.block


def _reading_the_block(edit: Edit, fit: AffineMap) -> Edit:
    return replace(edit, reads="block", right=fit.matrix, offset=fit.constant)
