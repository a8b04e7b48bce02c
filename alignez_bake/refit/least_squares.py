"""Least squares in closed form, from sums over tokens.

For rows x_t [d] and targets h_t [m] the affine map that minimises Σ‖h_t - Mᵀ x_t - m‖² has, with means x̄, h̄ over
the tokens,

    (Σ (x_t - x̄)(x_t - x̄)ᵀ) M = Σ (x_t - x̄)(h_t - h̄)ᵀ        m = h̄ - Mᵀ x̄                                  (1)

and the linear map through the origin, which minimises Σ‖h_t - Mᵀ x_t‖²,

    (Σ x_t x_tᵀ) M = Σ x_t h_tᵀ                                                                            (2)

All that both need are the moments of z = [x, 1] and D = h: zᵀz holds Σ x xᵀ, Σ x and n, and zᵀD holds Σ x hᵀ
and Σ h. With weights w_t, (1) minimises Σ w_t‖h_t - Mᵀ x_t - m‖², means and sums being weighted ones, if the moments
are those of √w_t z_t and √w_t h_t; n then is Σ w_t.

The matrix on the left is singular where the rows do not span the space: an output wider than its map's input, an
embedding of few tokens. So where its smallest eigenvalue λ lies below ε Σ‖x_t‖², μ I is added with μ = ε Σ‖x_t‖² - λ,
and nothing where it does not; the condition number then is at most 1/ε. ε = 1e-12 lies a thousand times above what
sums and centring round in float64 (about 1e-15 of the same energy), and above the rounding of float32 activations
(6e-8, squared), so that no coefficient is made of either. What it costs: (M, m) then minimises error + μ‖M‖², so the
error is at most that of the best map plus μ‖M_best‖². It is no protection against overfitting, and is not meant to
be one: held-out tokens show that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from alignez_bake.errors import BadInputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from alignez_bake.capture.statistics import Moments
    from alignez_bake.site import Site

    Float64Array = NDArray[np.float64]

SMALLEST_SHARE: Final = 1e-12
"""ε: the least eigenvalue that is solved with, as a share of Σ‖x_t‖²."""


class AffineMap(NamedTuple):
    """x -> Mᵀ x + m: matrix M, float64 [d, m], and constant m, float64 [m]."""

    matrix: Float64Array
    constant: Float64Array


def fit_affine(site: Site, moments: Moments) -> AffineMap:
    """Solve (1).

    Args:
        site: for messages.
        moments: of z = [x, 1] and D = h, or of both times the root of weights.

    Raises:
        BadInputError: sums that are not finite.
    """
    _check_finite(site, moments)
    count = moments.ztz[-1, -1]
    x_sum, h_sum = moments.ztz[:-1, -1], moments.ztd[-1]
    gram = moments.ztz[:-1, :-1] - np.outer(x_sum, x_sum) / count
    cross = moments.ztd[:-1] - np.outer(x_sum, h_sum) / count
    matrix = _solved(gram, cross, _energy(moments))
    return AffineMap(matrix, (h_sum - matrix.T @ x_sum) / count)


def fit_through_origin(site: Site, moments: Moments) -> tuple[Float64Array, Float64Array]:
    """Solve (2) for the targets h, and for the target that is 1 at every token.

    Args, errors: as `fit_affine`, without weights.

    Returns:
        M [d, m] for h, and u [d], the linear map that comes closest to the constant 1.
    """
    _check_finite(site, moments)
    both = np.column_stack([moments.ztd[:-1], moments.ztz[:-1, -1]])
    solution = _solved(moments.ztz[:-1, :-1], both, _energy(moments))
    return solution[:, :-1], solution[:, -1]


def _energy(moments: Moments) -> float:
    """Σ‖x_t‖², of the rows as they are, also where they are centred: that is what the sums rounded."""
    return float(np.trace(moments.ztz[:-1, :-1]))


def _solved(gram: Float64Array, cross: Float64Array, energy: float) -> Float64Array:
    if energy == 0.0:  # every x_t is zero: all maps are as good, this one is the least
        return np.zeros_like(cross)
    ridge = max(0.0, SMALLEST_SHARE * energy - float(np.linalg.eigvalsh(gram)[0]))
    return np.asarray(np.linalg.solve(gram + ridge * np.eye(gram.shape[0]), cross), dtype=np.float64)


def _check_finite(site: Site, moments: Moments) -> None:
    if not (np.isfinite(moments.ztz).all() and np.isfinite(moments.ztd).all()):
        raise BadInputError(
            f"{site}: activations are not finite under the plan's edits, so nothing can be fitted: use a smaller "
            "strength, or load the model in float32"
        )
