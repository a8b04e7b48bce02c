"""Rows of edited weights by the compiled kernel of `_row_kernel.c`, where it was built and the processor can run it.

It computes in float32 what numpy computes in float32, in one pass over memory. Both are within the bounds that `verify`
derives; their last bits may differ, so what a bake uses is one of its settings, stands in its record, and a bake that
was killed goes on with the same.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, get_args

import ml_dtypes
import numpy as np

from alignez_bake.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

RowBackend = Literal["compiled", "numpy"]
"""What computes rows of 16 bits that are rounded to nearest; numpy does everything else."""

VARIABLE: Final = "ALIGNEZ_BAKE_ROWS"
_EXTENSION: Final = "alignez_bake.lowering._row_kernel"
# As the extension counts them.
_KINDS: Final[dict[np.dtype[Any], int]] = {np.dtype(ml_dtypes.bfloat16): 0, np.dtype(np.float16): 1}


def row_backend(environment: Mapping[str, str] | None = None) -> RowBackend:
    """What computes rows: what the variable ALIGNEZ_BAKE_ROWS asks for, else the kernel where it can run.

    Args:
        environment: of the process, unless given.

    Raises:
        BadInputError: the variable asks for something unknown, or for a kernel that cannot run.
    """
    asked = (os.environ if environment is None else environment).get(VARIABLE, "")
    if asked not in ("", *get_args(RowBackend)):
        raise BadInputError(f"{VARIABLE} is {asked!r}: set it to {' or '.join(get_args(RowBackend))}, or unset it")
    if asked == "numpy":
        return "numpy"
    missing = why_not_compiled()
    if missing is None:
        return "compiled"
    if asked == "compiled":
        raise BadInputError(f"{VARIABLE} is 'compiled', but {missing}: unset it, and numpy computes rows")
    return "numpy"


def why_not_compiled() -> str | None:
    """Why the kernel cannot run here; None where it can."""
    if find_spec(_EXTENSION) is None:
        return "the compiled rows were not built, for want of a C compiler when alignez-bake was installed"
    from alignez_bake.lowering import _row_kernel  # noqa: PLC0415  # an install without a compiler lacks it

    if not _row_kernel.available():
        return "the compiled rows need a processor of x86-64 with AVX2, FMA and F16C"
    return None


class EditedRows(NamedTuple):
    """What was seen of rows while they were made, e being what rounding added.

    Attributes:
        finite: whether all results are.
        base: ‖W‖².
        change: ‖ΔW‖².
        aligned: <e, ΔW>.
        residual: ‖e‖².
    """

    finite: bool
    base: float
    change: float
    aligned: float
    residual: float


def is_16_bit(dtype: np.dtype[Any]) -> bool:
    """Whether the kernel takes values of a dtype: bf16 and fp16."""
    return dtype in _KINDS


def edit_rows(
    base: NDArray[Any], left: NDArray[np.float32], right: NDArray[np.float32], out: NDArray[Any]
) -> EditedRows:
    """W + ΔW with ΔW = left right, rounded once, to nearest, ties to even.

    With u = 2⁻²⁴, each ΔW_ij is one chain of k fused multiply-adds from zero, each of which rounds once, so it is
    within k u Σ_l |left_il| |right_lj| of the product to first order; that left and right were rounded to float32, and
    the sum with W, add 3 u at most. That is within (k + 4) u (|W| + |left| |right|), which `arithmetic_tolerance`
    derives for any order of summation. The bits of a row depend on no other row.

    In the four sums a lane of a vector adds 32 products up in float32, and what the lanes have is added in float64: a
    sum is off by at most 32 u, and less than one more, of the sum of its magnitudes. A square below float32's least
    number counts as zero and one above its largest as infinity: `is_plain` tells from ‖ΔW‖² whether that matters.

    Args:
        base: W [n, columns], bf16 or fp16, C-contiguous, at any address.
        left: [n, k].
        right: [k, columns].
        out: where the result goes, likewise; it may be `base`. Where it is not finite, what is stored is undefined.

    Raises:
        ValueError: shapes that do not fit, other dtypes, or memory that is not contiguous.
    """
    from alignez_bake.lowering import _row_kernel  # noqa: PLC0415  # an install without a compiler lacks it

    (rows, columns), inner = base.shape, right.shape[0]
    _check_float32(left, right)
    if out.shape != base.shape:
        raise ValueError(f"rows of shape {base.shape} have no room in {out.shape}")
    kinds = _kind(base.dtype), _kind(out.dtype)
    return EditedRows(*_row_kernel.edit_rows(_data(base), left, right, _data(out), rows, columns, inner, *kinds))


def add_product(stored: NDArray[Any], right: NDArray[np.float32], total: NDArray[np.float64], block: int) -> bool:
    """Add Rᵀ W of some rows to `total`: blocks of rows in float32, their products added in float64.

    An entry of a block of m rows is one chain of m fused multiply-adds, with u = 2⁻²⁴ within m u Σ_i |R_il| |W_ij|, and
    u more since R was rounded: that is within the (m + 2) u ‖R_l‖ ‖W_j‖ of `EditedTensors.matrix_change`.

    Args:
        stored: W [n, columns], bf16 or fp16, C-contiguous.
        right: R [n, k].
        total: [k, columns], added to in place.
        block: m, at least 1; the first block begins with the first row.

    Returns:
        Whether all of W is finite.

    Raises:
        ValueError: as `edit_rows`.
    """
    from alignez_bake.lowering import _row_kernel  # noqa: PLC0415  # an install without a compiler lacks it

    (rows, columns), inner = stored.shape, right.shape[1]
    _check_float32(right)
    if total.dtype != np.float64:
        raise ValueError(f"products are added in float64, not {total.dtype}")
    return _row_kernel.add_product(_data(stored), right, total, rows, columns, inner, block, _kind(stored.dtype))


def _kind(dtype: np.dtype[Any]) -> int:
    if dtype not in _KINDS:
        raise ValueError(f"the compiled rows are bfloat16 or float16, not {dtype}")
    return _KINDS[dtype]


def _check_float32(*factors: NDArray[Any]) -> None:
    for factor in factors:
        if factor.dtype != np.float32:
            raise ValueError(f"the compiled rows are computed in float32, not {factor.dtype}")


def _data(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Its memory: ml_dtypes' arrays have no buffer of their own."""
    if not values.flags.c_contiguous:
        raise ValueError(f"rows of shape {values.shape} and strides {values.strides} are not contiguous: copy them")
    return values.reshape(-1).view(np.uint8)
