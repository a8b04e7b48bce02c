"""Principal components of good and bad activations, for a picture of both.

With the rows of both sides stacked to X [n, d] and centred by their mean m, X - 1 mᵀ = U S Vᵀ: the first two columns of
V are the axes on which the rows vary most, (x - m)ᵀ v_i a row's coordinates, and s_i² / Σ s² the share of the variance
that axis i holds. The signs of a singular value decomposition are arbitrary and differ between libraries; here the mean
of the good rows lies on the positive side of each axis, so that two pictures can be compared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from alignez_bake.errors import BadInputError
from alignez_bake.report.html.report_data import PointCloud, Projection

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Float64Array = NDArray[np.float64]

# Means closer than this, in units of the largest singular value, differ by rounding alone.
_SAME: Final = 1e-9


class Pca(NamedTuple):
    """Two axes, and what they hold of the rows that they were found on.

    Attributes:
        mean: m, float64 [d].
        axes: v_1 and v_2 as rows, float64 [2, d].
        explained: share of the variance that each axis holds.
    """

    mean: Float64Array
    axes: Float64Array
    explained: tuple[float, float]

    def coordinates(self, rows: ArrayLike) -> Float64Array:
        """Coordinates of rows [n, d] on both axes, float64 [n, 2]."""
        found: Float64Array = (np.asarray(rows, dtype=np.float64) - self.mean) @ self.axes.T
        return found


def pca_of(good: ArrayLike, bad: ArrayLike) -> Pca:
    """The two axes on which good and bad activations, taken together, vary most.

    Args:
        good: [n, d], d at least 2.
        bad: [m, d].

    Raises:
        BadInputError: no rows of a side, rows of different or too small widths, values that are not finite, or rows
            that are all the same.
    """
    sides = [_checked(rows, name) for name, rows in (("good", good), ("bad", bad))]
    if sides[0].shape[1] != sides[1].shape[1]:
        raise BadInputError(f"good activations are {sides[0].shape[1]} wide, bad ones {sides[1].shape[1]}: no picture")
    rows = np.concatenate(sides)
    mean = rows.mean(axis=0)
    _, values, axes = np.linalg.svd(rows - mean, full_matrices=False)
    if not values[0] > _SAME * np.abs(rows).max():
        raise BadInputError("good and bad activations are all the same: they have no principal components")
    axes = axes[:2] * _signs(axes[:2], sides[0].mean(axis=0) - sides[1].mean(axis=0), _SAME * values[0])[:, None]
    shares = values[:2] ** 2 / np.sum(values**2)
    return Pca(mean, axes, (float(shares[0]), float(shares[1])))


def projection_of(
    site: str, good: ArrayLike, bad: ArrayLike, good_after: ArrayLike | None = None, bad_after: ArrayLike | None = None
) -> Projection:
    """The picture of one site: the base's activations, and the result's on the same axes.

    Args:
        site: where they were recorded, for the heading.
        good: [n, d], of the base.
        bad: [m, d], of the base.
        good_after: [n', d], of the result; None without it.
        bad_after: likewise.

    Raises:
        BadInputError: as `pca_of`; or one side alone of the result.
    """
    pca = pca_of(good, bad)
    before = PointCloud(pca.coordinates(good), pca.coordinates(bad), pca.explained)
    if good_after is None and bad_after is None:
        return Projection(site, before)
    if good_after is None or bad_after is None:
        raise BadInputError(f"{site}: activations after need both sides, good and bad")
    rows = np.concatenate([_checked(good_after, "good"), _checked(bad_after, "bad")])
    centred = rows - rows.mean(axis=0)
    # The axes are the base's, so of the result's variance they may hold any share.
    spread = np.sum(centred**2)
    shares = np.sum((centred @ pca.axes.T) ** 2, axis=0) / (spread if spread > 0 else 1.0)
    after = PointCloud(pca.coordinates(good_after), pca.coordinates(bad_after), (float(shares[0]), float(shares[1])))
    return Projection(site, before, after)


def _signs(axes: Float64Array, gap: Float64Array, same: float) -> NDArray[Any]:
    """1 or -1 for each axis: the good mean's side; where the means agree, that of the axis's largest entry."""
    along = axes @ gap
    largest = axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)]
    return np.where(np.where(np.abs(along) > same, along, largest) < 0, -1.0, 1.0)


def _checked(rows: ArrayLike, name: str) -> Float64Array:
    array = np.asarray(rows, dtype=np.float64)
    if array.ndim != 2 or array.shape[0] < 1 or array.shape[1] < 2:
        raise BadInputError(f"{name} activations have shape {array.shape}: rows of at least two values are needed")
    if not np.isfinite(array).all():
        raise BadInputError(f"{name} activations are not finite: they have no principal components")
    return array
