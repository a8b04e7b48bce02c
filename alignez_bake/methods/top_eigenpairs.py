"""The largest eigenvalues of a positive semidefinite matrix with their eigenvectors, all at once or by random probing.

Randomised subspace iteration (Halko, Martinsson and Tropp, "Finding structure with randomness", SIAM Review 2011,
algorithm 4.4 for the range and 5.3 for the eigenvalues in it): for A [m, m] and k of its eigenvectors,

    Y = A Ω,  Ω [m, k + p] Gaussian;   Q = orth(Y);   Q = orth(A Q) again and again;   T = Qᵀ A Q = U diag(θ) Uᵀ

gives the Ritz pairs (θ_i, Q u_i). Each product with A lessens the share of what is not wanted by λ_{k+p+1} / λ_k, and
2 q + 1 of them are what the paper calls q power iterations. One costs 2 m² (k + p) operations, against some 10 m³ of a
full decomposition, so after two power iterations they go on until the answer is as good as that of the other way:

    r = ‖A V - V diag(θ)‖_F <= 1e-9 θ_1,    V the k Ritz vectors of the largest θ                                    (r)

By it each θ_i is within r of an eigenvalue, and V is off its eigenspace by an angle of at most r over the gap to the
other eigenvalues (Davis and Kahan). That they are the *largest* is what the Gaussian start gives: a wanted direction
could stay hidden only if Ω had almost nothing of it in all of its k + p columns, and powers bring out what little there
is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Float64Array = NDArray[np.float64]

FoundBy = Literal["full", "randomised", "full, randomised was too slow"]

_OVERSAMPLING: Final = 8
_POWER_ITERATIONS: Final = 2
_MOST_PRODUCTS: Final = 100
_TOLERANCE: Final = 1e-9
_SMALL: Final = 2048
"""Up to here a full decomposition takes seconds."""
_SPARSE: Final = 16
"""Probing pays where this many times the probes are less than the size."""


class TopEigenpairs(NamedTuple):
    """The k largest eigenvalues, descending, with their eigenvectors.

    Attributes:
        values: float64 [k].
        vectors: float64 [m, k], orthonormal columns.
        found_by: how; the last where probing did not reach (r) within 100 products.
        residual: r / θ_1 of (r), where they were found by probing; else 0.
    """

    values: Float64Array
    vectors: Float64Array
    found_by: FoundBy
    residual: float


def top_eigenpairs(matrix: Float64Array, count: int, *, seed: int) -> TopEigenpairs:
    """The largest eigenvalues by the way that the sizes ask for.

    Args:
        matrix: A, float64 [m, m], symmetric and positive semidefinite up to rounding, not zero.
        count: k, at least 1; m pairs are given where it is larger.
        seed: of Ω.
    """
    size = matrix.shape[0]
    if size <= _SMALL or _SPARSE * (count + _OVERSAMPLING) > size:
        return _full(matrix, count, "full")
    found = probed_eigenpairs(matrix, count, seed=seed)
    return _full(matrix, count, "full, randomised was too slow") if found is None else found


def probed_eigenpairs(matrix: Float64Array, count: int, *, seed: int) -> TopEigenpairs | None:
    """The largest eigenvalues by random probing, or None where (r) is not reached; arguments as `top_eigenpairs`."""
    size = matrix.shape[0]
    start = np.random.default_rng(seed).standard_normal((size, min(size, count + _OVERSAMPLING)))
    basis = np.linalg.qr(start)[0]
    for products in range(1, _MOST_PRODUCTS + 1):
        image = matrix @ basis
        if products > 2 * _POWER_ITERATIONS + 1:
            projected = basis.T @ image
            ritz, turns = np.linalg.eigh((projected + projected.T) / 2.0)
            values, turns = ritz[::-1][:count], turns[:, ::-1][:, :count]
            vectors = basis @ turns
            residual = float(np.linalg.norm(image @ turns - vectors * values))
            if residual <= _TOLERANCE * values[0]:
                return TopEigenpairs(values, vectors, "randomised", residual / float(values[0]))
        basis = np.linalg.qr(image)[0]
    return None


def _full(matrix: Float64Array, count: int, found_by: FoundBy) -> TopEigenpairs:
    values, vectors = np.linalg.eigh(matrix)
    return TopEigenpairs(values[::-1][:count], vectors[:, ::-1][:, :count], found_by, 0.0)
