"""Directions from rows of activations: pure linear algebra on float64 arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from alignez_bake.errors import BadInputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from alignez_bake.site import Site

    Float64Array = NDArray[np.float64]


class Directions(NamedTuple):
    """Right singular vectors of rows X [n, d], strongest first.

    Attributes:
        basis: float64 [d, k], orthonormal columns.
        energies: float64 [k], the share of ‖X‖² that lies along each.
    """

    basis: Float64Array
    energies: Float64Array


def top_directions(site: Site, rows: Float64Array, rank: int) -> Directions:
    """The k strongest right singular vectors of X, not centred; each points to the side of the mean row.

    Of all orthonormal bases of k columns they keep most of ‖X‖² (Eckart-Young). A singular vector's sign is
    arbitrary; here mean(X)·v >= 0, and where that is 0 the largest entry is positive.

    Args:
        site: for messages.
        rows: X [n, d].
        rank: k.

    Raises:
        BadInputError: X has a rank below k, so that the last directions would be arbitrary.
    """
    strengths, basis = _right_singular(rows)
    available = _numerical_rank(strengths, rows.shape)
    if rank > available:
        raise BadInputError(
            f"{site}: rank {rank} is not possible: {rows.shape[0]} activations of width {rows.shape[1]} "
            f"span {available} directions"
        )
    energies = np.square(strengths) / np.square(strengths).sum()
    return Directions(_oriented(basis[:, :rank], rows), energies[:rank])


def directions_with_energy(site: Site, rows: Float64Array, share: float) -> Directions:
    """The fewest strongest right singular vectors of X that hold at least a share of ‖X‖², oriented as above.

    Args:
        site: for messages.
        rows: X [n, d].
        share: within (0, 1].

    Raises:
        BadInputError: X is zero.
    """
    strengths, basis = _right_singular(rows)
    available = _numerical_rank(strengths, rows.shape)
    if available == 0:
        raise BadInputError(f"{site}: all differences are zero: there is no direction to find")
    energies = np.square(strengths) / np.square(strengths).sum()
    reached = np.flatnonzero(np.cumsum(energies) >= share)
    rank = min(int(reached[0]) + 1 if reached.size else available, available)
    return Directions(_oriented(basis[:, :rank], rows), energies[:rank])


def _right_singular(rows: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Singular values [m] and right singular vectors [d, m], m = min(n, d)."""
    _, strengths, transposed = np.linalg.svd(rows, full_matrices=False)
    return strengths, transposed.T


def _numerical_rank(strengths: Float64Array, shape: tuple[int, ...]) -> int:
    floor = strengths[0] * max(shape) * np.finfo(np.float64).eps if strengths.size else 0.0
    return int(np.count_nonzero(strengths > floor))


def _oriented(basis: Float64Array, rows: Float64Array) -> Float64Array:
    towards_mean = rows.mean(axis=0) @ basis
    largest = basis[np.abs(basis).argmax(axis=0), np.arange(basis.shape[1])]
    signs = np.where(towards_mean != 0.0, np.sign(towards_mean), np.sign(largest))
    oriented: Float64Array = basis * signs
    return oriented
