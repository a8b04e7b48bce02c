"""The operators of the literature as records: each builds one edit that reads the output of its site.

With U and V orthonormal bases [d, k] (bad and good directions) and y a row vector:

| builder              | what it does                              | L        | R              | g        |
|----------------------|-------------------------------------------|----------|----------------|----------|
| `remove`             | y - U Uᵀ y                                | -U       | U              | identity |
| `boost`              | y + a V Vᵀ y                              | aV       | V              | identity |
| `remove_then_boost`  | (I + a V Vᵀ)(I - U Uᵀ) y                  | [-U, aV] | [U, V - U UᵀV] | identity |
| `one_sided_removal`  | y - a U relu(Uᵀ y)                        | -aU      | U              | relu     |
| `bounded_boost`      | y + a V tanh(Vᵀ y)                        | aV       | V              | tanh     |
| `shift`              | y + a c                                   |          |                |          |

For `remove_then_boost`, with P = U Uᵀ and Q = V Vᵀ:

    (I + aQ)(I - P) - I = -P + aQ - aQP = -U Uᵀ + a V (V - U UᵀV)ᵀ

which is the sum of the two only where U is orthogonal to V. Except in that builder, a is the edit's `strength`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from alignez_bake.edit import Edit
from alignez_bake.errors import BadInputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from alignez_bake.site import Site

    Float64Array = NDArray[np.float64]

# Bases that come out of a float64 SVD are orthonormal to about 1e-15 · d, float32 ones to 1e-6.
_ORTHONORMAL_TOLERANCE: Final = 1e-5


def remove(site: Site, bad: Float64Array, *, objective: str | None = None) -> Edit:
    """y - U Uᵀ y: what lies along the bad directions is gone (AlignEZ v1, harmful directions).

    Args:
        site: whose output is edited.
        bad: U [d, k], orthonormal columns, sorted by contribution.
        objective: name that the edit carries.

    Raises:
        BadInputError: columns that are not orthonormal.
    """
    _check_orthonormal(site, bad)
    return Edit(site, left=-bad, right=bad, objective=objective)


def boost(site: Site, good: Float64Array, strength: float, *, objective: str | None = None) -> Edit:
    """y + a V Vᵀ y: what lies along the good directions grows by the factor 1 + a (AlignEZ v1, helpful directions).

    Args:
        site: whose output is edited.
        good: V [d, k], orthonormal columns, sorted by contribution.
        strength: a.
        objective: name that the edit carries.

    Raises:
        BadInputError: columns that are not orthonormal.
    """
    _check_orthonormal(site, good)
    return Edit(site, left=good, right=good, strength=strength, objective=objective)


def remove_then_boost(
    site: Site, bad: Float64Array, good: Float64Array, strength: float, *, objective: str | None = None
) -> Edit:
    """(I + a V Vᵀ)(I - U Uᵀ) y as one edit of rank k_U + k_V; its columns are not sorted by contribution.

    Args:
        site: whose output is edited.
        bad: U [d, k_U], orthonormal columns.
        good: V [d, k_V], orthonormal columns.
        strength: a; it stands in L, since the removal is not scaled by it.
        objective: name that the edit carries.

    Raises:
        BadInputError: columns that are not orthonormal, or of different lengths.
    """
    _check_orthonormal(site, bad)
    _check_orthonormal(site, good)
    if bad.shape[0] != good.shape[0]:
        raise BadInputError(f"{site}: bad directions of width {bad.shape[0]}, good ones of width {good.shape[0]}")
    left = np.hstack([-bad, strength * good])
    right = np.hstack([bad, good - bad @ (bad.T @ good)])
    return Edit(site, left=left, right=right, objective=objective)


def one_sided_removal(site: Site, bad: Float64Array, strength: float, *, objective: str | None = None) -> Edit:
    """y - a U relu(Uᵀ y): only what points along the bad directions goes (AlignEZ v2); it cannot be folded.

    Args:
        site: whose output is edited.
        bad: U [d, k], orthonormal columns whose signs matter.
        strength: a.
        objective: name that the edit carries.

    Raises:
        BadInputError: columns that are not orthonormal.
    """
    _check_orthonormal(site, bad)
    return Edit(site, left=-bad, right=bad, gate="relu", strength=strength, objective=objective)


def bounded_boost(site: Site, good: Float64Array, strength: float, *, objective: str | None = None) -> Edit:
    """y + a V tanh(Vᵀ y): at most a along each good direction (AlignEZ v2); it cannot be folded.

    Args:
        site: whose output is edited.
        good: V [d, k], orthonormal columns.
        strength: a.
        objective: name that the edit carries.

    Raises:
        BadInputError: columns that are not orthonormal.
    """
    _check_orthonormal(site, good)
    return Edit(site, left=good, right=good, gate="tanh", strength=strength, objective=objective)


def shift(site: Site, direction: Float64Array, strength: float, *, objective: str | None = None) -> Edit:
    """y + a c: the same step at every token (CAA, ITI).

    Args:
        site: whose output is edited.
        direction: c [d], of any length.
        strength: a.
        objective: name that the edit carries.
    """
    return Edit(site, bias=direction, strength=strength, objective=objective)


def _check_orthonormal(site: Site, basis: Float64Array) -> None:
    if basis.ndim != 2:
        raise BadInputError(f"{site}: directions have shape {basis.shape}: they must be the columns of a matrix")
    error = float(np.abs(basis.T @ basis - np.eye(basis.shape[1])).max(initial=0.0))
    if not error <= _ORTHONORMAL_TOLERANCE:
        raise BadInputError(
            f"{site}: directions are not orthonormal: their products are off by {error:.1e}, "
            f"at most {_ORTHONORMAL_TOLERANCE:.0e} is allowed"
        )
