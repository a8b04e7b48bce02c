"""The ridge of `methods.ridge` without its bound on the rank, from moments or from rows.

With Z [n, d_in], D [n, d_out] and μ > 0, the solution and the matrix whose top eigenvectors bound its rank are

    B = M⁻¹ ZᵀD,   M = ZᵀZ + μ I;        A = BᵀZᵀD                                                           (primal)

Let K = ZZᵀ and G = K + μ I, both [n, n]. From (ZᵀZ + μ I) Zᵀ = Zᵀ (ZZᵀ + μ I) follows M⁻¹ Zᵀ = Zᵀ G⁻¹, so

    B = Zᵀ G⁻¹ D;        A = DᵀG⁻¹ Z ZᵀD = Dᵀ K G⁻¹ D                                                          (dual)

where K and G⁻¹ commute. The two are equal for every n; what has to be solved is [d_in, d_in] in the one and [n, n] in
the other. The penalty stays the same number: μ = λ tr(ZᵀZ) / d_in = λ tr(K) / d_in.

Where d_out > n, D has no more than n directions: Dᵀ = P R with P [d_out, n] of orthonormal columns and R [n, n], so
D = RᵀPᵀ, and the problem with D' = Rᵀ in place of D is the same one in the coordinates of P: B = B' Pᵀ,
A = P A' Pᵀ, and the eigenvectors of A that belong to eigenvalues above 0 are P times those of A' = R K G⁻¹ Rᵀ. No array
of [d_out, d_out] is made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from alignez_bake.capture.statistics import Moments, TokenRows

    Float64Array = NDArray[np.float64]

_BLOCK: Final = 2048
"""Columns of Z turned into float64 at a time."""


class RidgeSystem(NamedTuple):
    """B of the module docstring, as far as a fit of rank k needs it.

    Attributes:
        fitted: A, float64 [m, m], symmetric, in coordinates of D: m = d_out, or n where that is less in the dual form.
        outputs: of coordinates [m, k] the vectors [d_out, k]: P times them, or themselves.
        inputs: of coordinates V [m, k] the product B V, float64 [d_in, k].
        energy: of X [d_in, k] the sum ‖Z X‖².
    """

    fitted: Float64Array
    outputs: Callable[[Float64Array], Float64Array]
    inputs: Callable[[Float64Array], Float64Array]
    energy: Callable[[Float64Array], float]


def primal_system(moments: Moments, *, penalty: float) -> RidgeSystem:
    """From ZᵀZ and ZᵀD.

    Memory: three arrays of [d_in, d_in], one of [d_in, d_out] and two of [d_out, d_out], in float64, for a while:
    0.8 GB at widths of 4096.

    Args:
        moments: of Z and D.
        penalty: λ.
    """
    penalised = np.array(moments.ztz)
    np.fill_diagonal(penalised, penalised.diagonal() + penalty * np.trace(moments.ztz) / moments.d_in)
    full = np.linalg.solve(penalised, moments.ztd)
    del penalised

    def energy(right: Float64Array) -> float:
        return float(np.sum(right * (moments.ztz @ right)))

    return RidgeSystem(_symmetric(full.T @ moments.ztd), lambda left: left, lambda left: full @ left, energy)


def dual_system(rows: TokenRows, *, penalty: float) -> RidgeSystem:
    """From Z and D.

    Memory: four arrays of [n, n] and three of [n, d_out] in float64, for a while, and a block of Z: 0.9 GB for 4096
    rows of 4096 outputs, whatever d_in is.

    Args:
        rows: Z and D.
        penalty: λ.
    """
    gram = np.zeros((rows.count, rows.count))
    for block in _column_blocks(rows):
        gram += block @ block.T
    penalised = gram.copy()
    np.fill_diagonal(penalised, penalised.diagonal() + penalty * np.trace(gram) / rows.d_in)
    targets = rows.d.astype(np.float64)
    basis: Float64Array | None = None
    if rows.d_out > rows.count:
        basis, triangle = np.linalg.qr(targets.T)
        targets = np.ascontiguousarray(triangle.T)
    solved = np.linalg.solve(penalised, targets)
    del penalised
    fitted = _symmetric(targets.T @ (gram @ solved))

    def outputs(left: Float64Array) -> Float64Array:
        return left if basis is None else basis @ left

    def inputs(left: Float64Array) -> Float64Array:
        weights = solved @ left
        return np.concatenate([block.T @ weights for block in _column_blocks(rows)])

    def energy(right: Float64Array) -> float:
        edges = range(0, rows.d_in, _BLOCK)
        blocks = zip(edges, _column_blocks(rows), strict=True)
        return float(np.square(sum(block @ right[first : first + _BLOCK] for first, block in blocks)).sum())

    return RidgeSystem(fitted, outputs, inputs, energy)


def _symmetric(matrix: Float64Array) -> Float64Array:
    """Without what rounding made of a symmetric matrix."""
    return (matrix + matrix.T) / 2.0


def _column_blocks(rows: TokenRows) -> Iterator[Float64Array]:
    for first in range(0, rows.d_in, _BLOCK):
        yield rows.z[:, first : first + _BLOCK].astype(np.float64)
