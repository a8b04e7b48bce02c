"""Linear edits of a linear map as one low-rank change of its weight and bias."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from alignez_bake.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from alignez_bake.edit import Edit
    from alignez_bake.edit_plan import Group

    Float64Array = NDArray[np.float64]


class LowRankChange(NamedTuple):
    """W' = W + B A and b' = b + Δb, in float64: B [d_out, k], A [k, d_in], Δb [d_out].

    `a_error` [k, d_in] bounds how far A is off where Rᵀ W is; None where it was not asked for.
    """

    b_matrix: Float64Array
    a_matrix: Float64Array
    delta_bias: Float64Array
    a_error: Float64Array | None = None

    @property
    def needs_bias(self) -> bool:
        """Whether the change has a constant part, which needs a bias to live in."""
        return bool(self.delta_bias.any())


def low_rank(groups: Sequence[Group], weight: NDArray[Any], bias: NDArray[Any] | None) -> LowRankChange:
    """The change (B, A, Δb) of y = W z + b that equals applying the groups of linear edits to y.

    See `low_rank_of_projected`, which needs of W no more than Rᵀ W.

    Args:
        groups: the parallel groups at the site.
        weight: W [d_out, d_in], any float dtype.
        bias: b [d_out], or None for a map without bias.

    Raises:
        BadInputError: an edit that is not linear, reads the block, or whose widths are not those of W.
    """
    d_out, d_in = weight.shape
    weight64 = weight.astype(np.float64)
    return low_rank_of_projected(groups, (d_out, d_in), lambda right: right.T @ weight64, bias)


def low_rank_of_projected(
    groups: Sequence[Group],
    shape: tuple[int, int],
    project: Callable[[Float64Array], Float64Array],
    bias: NDArray[Any] | None,
    project_error: Callable[[Float64Array], Float64Array] | None = None,
) -> LowRankChange:
    """The change (B, A, Δb) of y = W z + b that equals applying the groups of linear edits to y.

    One group, walked in order. Suppose the entries so far have turned y into (W + B A) z + b + Δb. The next
    entry, with its strength multiplied into L and c, reads either

    1. the output r = (W + B A) z + b + Δb. It adds L (Rᵀ r + s) + c, so
           B <- [B, L]     A <- [A; Rᵀ W + (Rᵀ B) A]     Δb <- Δb + L (Rᵀ (b + Δb) + s) + c
    2. the input r = z. It adds L (Rᵀ z + s) + c, so
           B <- [B, L]     A <- [A; Rᵀ]                  Δb <- Δb + L s + c

    Stacking A_i = R_iᵀ W without the term (Rᵀ B) A would apply every entry to the unedited output. Groups are
    parallel, y' = y + Σ_o w_o (E_o(y) - y), so each is walked from W and b, scaled by its dial, and appended.

    W itself occurs in Rᵀ W alone: whoever streams W may make that product row by row, for all entries at once. Where
    that is off by at most P, entry by entry, A is off by at most E: E <- [E; P + |Rᵀ B| E] in case 1, E <- [E; 0] in 2.

    Args:
        groups: the parallel groups at the site.
        shape: (d_out, d_in) of W.
        project: gives Rᵀ W [k, d_in] for the R [d_out, k] of each entry that reads the output, in order.
        bias: b [d_out], or None for a map without bias.
        project_error: P [k, d_in] for the same R in the same order, if E is asked for.

    Raises:
        BadInputError: an edit that is not linear, reads the block, or whose widths are not those of W.
    """
    d_out, d_in = shape
    base_bias = np.zeros(d_out) if bias is None else bias.astype(np.float64)
    b_parts, a_parts, total_bias = [np.zeros((d_out, 0))], [np.zeros((0, d_in))], np.zeros(d_out)
    e_parts = [np.zeros((0, d_in))]
    for group in groups:
        b_matrix, a_matrix, delta_bias = np.zeros((d_out, 0)), np.zeros((0, d_in)), np.zeros(d_out)
        a_error = np.zeros((0, d_in))
        for edit in group.edits:
            _check_widths(edit, d_out, d_in)
            constant = np.zeros(d_out) if edit.bias is None else edit.strength * edit.bias.astype(np.float64)
            if edit.left is not None and edit.right is not None:
                left = edit.strength * edit.left.astype(np.float64)
                right = edit.right.astype(np.float64)
                hidden = np.zeros(edit.rank) if edit.offset is None else edit.offset.astype(np.float64)
                e_new = np.zeros((edit.rank if project_error is not None else 0, d_in))
                if edit.reads == "output":
                    a_new = project(right) + (right.T @ b_matrix) @ a_matrix
                    if project_error is not None:
                        e_new = project_error(right) + np.abs(right.T @ b_matrix) @ a_error
                    hidden = hidden + right.T @ (base_bias + delta_bias)
                else:
                    a_new = right.T
                b_matrix, a_matrix = np.hstack([b_matrix, left]), np.vstack([a_matrix, a_new])
                a_error = np.vstack([a_error, e_new])
                constant = constant + left @ hidden
            delta_bias = delta_bias + constant
        b_parts.append(group.weight * b_matrix)
        a_parts.append(a_matrix)
        e_parts.append(a_error)
        total_bias = total_bias + group.weight * delta_bias
    error = None if project_error is None else np.vstack(e_parts)
    return LowRankChange(np.hstack(b_parts), np.vstack(a_parts), total_bias, error)


def projected_rights(groups: Sequence[Group]) -> list[NDArray[Any]]:
    """The R [d_out, k] that `low_rank_of_projected` asks the projections of, in the order in which it asks."""
    return [edit.right for group in groups for edit in group.edits if edit.reads == "output" and edit.right is not None]


def _check_widths(edit: Edit, d_out: int, d_in: int) -> None:
    if not edit.is_linear or edit.reads == "block":
        raise BadInputError(f"edit at {edit.site} is not a linear edit of a linear map: it cannot fold")
    if edit.d_out != d_out:
        raise BadInputError(f"edit at {edit.site} has width {edit.d_out}, but the map's output has width {d_out}")
    expected = d_in if edit.reads == "input" else d_out
    if edit.d_read not in (None, expected):
        raise BadInputError(
            f"edit at {edit.site} reads the {edit.reads} of width {edit.d_read}, but the map's is {expected}"
        )
