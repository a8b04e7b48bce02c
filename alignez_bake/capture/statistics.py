"""Activation statistics: mergeable, in float64, without torch.

Two captures over two halves of the pairs, merged, are the capture over all of them: `Rows` exactly, `Moments` up
to the rounding of float64 sums. So work can be split, resumed, and added to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from alignez_bake.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from alignez_bake.capture.spec import MomentsSpec, RowsSpec

    Float64Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Rows:
    """Activations, one row per pair or token, in the order of the pairs.

    State: 8·n·d bytes, so for a row a pair about 6 MB for 200 pairs at width 4096; `answer` and `shared` tokens
    grow with the text and are for small models.

    Attributes:
        values: float64 [n, d].
    """

    values: Float64Array

    @property
    def count(self) -> int:
        """Number of rows."""
        return int(self.values.shape[0])

    def merged_with(self, other: Rows) -> Rows:
        """The rows of both, these first.

        Raises:
            BadInputError: different widths.
        """
        if self.values.shape[1] != other.values.shape[1]:
            raise BadInputError(f"rows of width {self.values.shape[1]} and {other.values.shape[1]} cannot be merged")
        return Rows(np.concatenate([self.values, other.values]))


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over n tokens, with rows z_t of Z [n, d_in] and d_t of D [n, d_out].

    State: 8·d_in·(d_in + d_out) bytes and little more, whatever n is: 268 MB a site at width 4096.

    Attributes:
        ztz: ZᵀZ, float64 [d_in, d_in].
        ztd: ZᵀD, float64 [d_in, d_out].
        z_sum: Σ z_t, float64 [d_in].
        d_square: Σ ‖d_t‖².
        count: n.
    """

    ztz: Float64Array
    ztd: Float64Array
    z_sum: Float64Array
    d_square: float
    count: int

    @classmethod
    def of(cls, z: Float64Array, d: Float64Array) -> Moments:
        """The moments of rows that are at hand: z [n, d_in], d [n, d_out], float64."""
        return cls(z.T @ z, z.T @ d, z.sum(axis=0), float(np.square(d).sum()), z.shape[0])

    @property
    def d_in(self) -> int:
        """Width of Z."""
        return int(self.ztd.shape[0])

    @property
    def d_out(self) -> int:
        """Width of D."""
        return int(self.ztd.shape[1])

    def merged_with(self, other: Moments) -> Moments:
        """The moments over the tokens of both.

        Raises:
            BadInputError: different widths.
        """
        if self.ztd.shape != other.ztd.shape:
            raise BadInputError(f"moments of widths {self.ztd.shape} and {other.ztd.shape} cannot be merged")
        return Moments(
            self.ztz + other.ztz,
            self.ztd + other.ztd,
            self.z_sum + other.z_sum,
            self.d_square + other.d_square,
            self.count + other.count,
        )


@dataclass(frozen=True, eq=False)
class ActivationStatistics:
    """What one capture recorded, by the spec that asked for it."""

    rows: Mapping[RowsSpec, Rows]
    moments: Mapping[MomentsSpec, Moments]

    def merged_with(self, other: ActivationStatistics) -> ActivationStatistics:
        """The statistics over the pairs of both captures; weights stay those of each.

        Raises:
            BadInputError: the captures recorded different things.
        """
        if self.rows.keys() != other.rows.keys() or self.moments.keys() != other.moments.keys():
            raise BadInputError("statistics of different specs cannot be merged")
        return ActivationStatistics(
            {spec: rows.merged_with(other.rows[spec]) for spec, rows in self.rows.items()},
            {spec: moments.merged_with(other.moments[spec]) for spec, moments in self.moments.items()},
        )
