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
    b_parts: list[Float64Array] = []
    a_parts: list[Float64Array] = []
    e_parts: list[Float64Array] = []
    total_bias = np.zeros(d_out)
    for group in groups:
        own = len(a_parts)
        delta_bias = np.zeros(d_out)
        for edit in group.edits:
            _check_widths(edit, d_out, d_in)
            constant = np.zeros(d_out) if edit.bias is None else edit.strength * edit.bias.astype(np.float64)
            if edit.left is not None and edit.right is not None:
                left = edit.strength * edit.left.astype(np.float64)
                right = edit.right.astype(np.float64)
                hidden = np.zeros(edit.rank) if edit.offset is None else edit.offset.astype(np.float64)
                a_new, e_new = right.T, np.zeros((edit.rank, d_in) if project_error is not None else (0, d_in))
                if edit.reads == "output":
                    # Part by part, each as it is: A is as wide as the map, and a copy would be felt.
                    inner = [right.T @ b_part for b_part in b_parts[own:]]
                    a_new = _plus(project(right), inner, a_parts[own:])
                    if project_error is not None:
                        e_new = _plus(project_error(right), [np.abs(part) for part in inner], e_parts[own:])
                    hidden = hidden + right.T @ (base_bias + delta_bias)
                b_parts.append(left)
                a_parts.append(a_new)
                e_parts.append(e_new)
                constant = constant + left @ hidden
            delta_bias = delta_bias + constant
        b_parts[own:] = [group.weight * b_part for b_part in b_parts[own:]]
        total_bias = total_bias + group.weight * delta_bias
    b_matrix = np.hstack([np.zeros((d_out, 0)), *b_parts])
    error = None if project_error is None else _stacked(e_parts, d_in)
    return LowRankChange(b_matrix, _stacked(a_parts, d_in), total_bias, error)


def _plus(first: Float64Array, lefts: Sequence[Float64Array], rights: Sequence[Float64Array]) -> Float64Array:
    """`first` and the products of all pairs."""
    for left, right in zip(lefts, rights, strict=True):
        first = first + left @ right
    return first


def _stacked(parts: Sequence[Float64Array], width: int) -> Float64Array:
    """One below the other; a single one as it is."""
    return parts[0] if len(parts) == 1 else np.vstack([np.zeros((0, width)), *parts])


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
