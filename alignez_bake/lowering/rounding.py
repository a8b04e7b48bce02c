"""Rounding edited rows to the dtype in which they are stored: to nearest, or so that the edit survives it.

The rule is one word, `Rounding`. Whatever the rule, a stored value is one of the two neighbours of the exact one, and
`is_neighbour` checks that. Why there are two rules, and what was measured: docs/decisions/rounding.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from alignez_bake.errors import BadInputError
from alignez_bake.lowering.error_carrying import carried_rows
from alignez_bake.safetensors_io.dtypes import cast_once

if TYPE_CHECKING:
    from numpy.typing import NDArray

Rounding = Literal["nearest", "carry"]
"""`nearest`: each value for itself. `carry`: other values of a row carry what rounding takes from the row's change."""


def round_rows(exact: NDArray[Any], dtype: np.dtype[Any], *, change: NDArray[Any] | None = None) -> NDArray[Any]:
    """Exact values as they are stored.

    Args:
        exact: W' [n, columns], float32 or float64, rows as they lie in the file: outputs of a map or inputs, whichever.
        dtype: of the file, such as `ml_dtypes.bfloat16`.
        change: ΔW [n, columns] in the same dtype, to carry errors along each row's own change; None to round to
            nearest, ties to even.

    Returns:
        A new array of the same shape and of dtype `dtype`, or `exact` itself where it has that dtype. What overflows
        becomes infinite, as it does in `cast_once`; carrying makes nothing infinite that nearest does not.

    Raises:
        BadInputError: `exact` is not float32 or float64, or `change` is of another shape or dtype.
    """
    if exact.dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise BadInputError(f"rows to be rounded have dtype {exact.dtype}, not float32 or float64: cast them first")
    if change is None or exact.dtype == dtype:
        return cast_once(exact, dtype)
    if exact.ndim != 2 or change.shape != exact.shape or change.dtype != exact.dtype:
        raise BadInputError(
            f"exact rows {list(exact.shape)} of {exact.dtype} and their change {list(change.shape)} of {change.dtype} "
            "must be matrices of one shape and dtype"
        )
    return carried_rows(exact, change, dtype)


def is_neighbour(exact: NDArray[Any], stored: NDArray[Any], tolerance: NDArray[Any] | float = 0.0) -> NDArray[np.bool_]:
    """Which stored values are the next below or above the exact one, or the exact one itself.

    With s⁻ < s < s⁺ three values of the dtype in a row, s is a neighbour of x if and only if s⁻ < x < s⁺: at x = s⁺
    the value can be stored as it is, and s is none. An x that is known within a tolerance t counts if any value that it
    may have does: s⁻ - t < x < s⁺ + t.

    Above the largest finite value s⁺ is where it would lie if exponents went on.

    Args:
        exact: any shape, float32 or float64.
        stored: the same shape, in the dtype of the file.
        tolerance: of `exact`, such as `arithmetic_tolerance`; a scalar or of the same shape.

    Returns:
        A mask of the same shape; False where either value is not finite.
    """
    bits = stored.view(f"u{stored.dtype.itemsize}")
    sign = bits.dtype.type(1 << (8 * stored.dtype.itemsize - 1))
    zero = (bits & ~sign) == 0
    with np.errstate(invalid="ignore", over="ignore"):
        value = stored.astype(np.float64)
        inner = np.where(zero, (bits & sign) ^ sign | 1, bits - ~zero).view(stored.dtype).astype(np.float64)
        outer = (bits + bits.dtype.type(1)).view(stored.dtype).astype(np.float64)
        outer = np.where(np.isfinite(outer), outer, value + (value - inner))
        low, high = np.minimum(inner, outer), np.maximum(inner, outer)
        found: NDArray[np.bool_] = (low - tolerance < exact) & (exact < high + tolerance) & np.isfinite(value)
    return found


def arithmetic_tolerance(magnitude: NDArray[Any], terms: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """How far an exact value may be off because W + B A was computed in some dtype.

    With u half a last bit of that dtype (2⁻²⁴ of float32), ΔW_ij = Σ_l B_il A_lj over k terms, whose factors have been
    rounded to that dtype from what they are, is computed within (k + 2) u Σ_l |B_il| |A_lj| to first order, in any
    order of summation: k of products and sums, 2 of the factors. Adding W, which is exact, rounds once more, by
    u |W_ij + ΔW_ij|. So

        |error_ij| <= (k + 3) u (|W_ij| + Σ_l |B_il| |A_lj|)  <=  (k + 3) u (|W_ij| + ‖B_i‖ ‖A_j‖),

    and one more u stands for all terms of second order, which is right for k below 2¹¹. It does not cover how B and A
    themselves were made.

    Source: N. Higham, Accuracy and Stability of Numerical Algorithms, section 3.1.

    Args:
        magnitude: |W| + |B| |A| of the values, as `MatrixChange.magnitude` gives it.
        terms: k.
        dtype: of the arithmetic.

    Returns:
        The bound for each value, in float64.
    """
    half_a_bit = float(np.finfo(dtype).eps) / 2
    bound: NDArray[Any] = magnitude.astype(np.float64) * ((terms + 4) * half_a_bit)
    return bound
