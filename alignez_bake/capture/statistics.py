"""Activation statistics: mergeable, in float64, without torch.

Two captures over two halves of the pairs, merged, are the capture over all of them: `Rows` exactly, `Moments` up
to the rounding of float64 sums. So work can be split, resumed, and added to.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from alignez_bake.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from alignez_bake.capture.memory import StatisticsMemory
    from alignez_bake.capture.spec import MomentsSpec, RowsSpec

    Float32Array = NDArray[np.float32]
    Float64Array = NDArray[np.float64]

_BLOCK: Final = 4096
"""Rows turned into float64 at a time."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Activations, one row per pair or token, in the order of the pairs.

    State: 8·n·d bytes, so for a row a pair about 6 MB for 200 pairs at width 4096; `answer` and `shared` tokens
    grow with the text and are for small models.

    Attributes:
        values: float64 [n, d].
        predicts_answer: bool [n], the rows of tokens behind which a token of the answer, or its end, comes next; None
            where that is not known.
    """

    values: Float64Array
    predicts_answer: NDArray[np.bool_] | None = None

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
        known = self.predicts_answer is not None and other.predicts_answer is not None
        return Rows(
            np.concatenate([self.values, other.values]),
            np.concatenate([self.predicts_answer, other.predicts_answer]) if known else None,
        )


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over n tokens, with rows z_t of Z [n, d_in] and d_t of D [n, d_out].

    State: 8·d_in·(d_in + d_out) bytes and little more, whatever n is: 268 MB a site at width 4096.

    Attributes:
        ztz: ZᵀZ, float64 [d_in, d_in]; rows need not be contiguous, and may lie in a file.
        ztd: ZᵀD, float64 [d_in, d_out], the same.
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

    def with_nothing_wanted(self, rows: Float32Array | Float64Array, worth: float = 1.0) -> Moments:
        """Those of more tokens, at which D is 0: an edit's effect there is paid for.

        Args:
            rows: of Z at them [m, d_in].
            worth: together they count as `worth` times the n tokens.
        """
        more, share = rows.astype(np.float64), worth * self.count / len(rows)
        return Moments(
            self.ztz + share * (more.T @ more),
            self.ztd,
            self.z_sum + share * more.sum(axis=0),
            self.d_square,
            self.count + round(worth * self.count),
        )

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
class TokenRows:
    """Z and D themselves, where the tokens are fewer than Z is wide: less than their moments, and all that they say.

    State: 4·n·(d_in + d_out) bytes, less than half of the moments' while n < d_in.

    Attributes:
        z: float32 [n, d_in].
        d: float32 [n, d_out], weighted.
        read: tokens that these are a sample of, n where they are all.
    """

    z: Float32Array
    d: Float32Array
    read: int

    @property
    def count(self) -> int:
        """n."""
        return int(self.z.shape[0])

    @property
    def d_in(self) -> int:
        """Width of Z."""
        return int(self.z.shape[1])

    @property
    def d_out(self) -> int:
        """Width of D."""
        return int(self.d.shape[1])

    def moments(self) -> Moments:
        """Their moments, summed in float64 over blocks of rows."""
        total = Moments.of(np.zeros((0, self.d_in)), np.zeros((0, self.d_out)))
        for first in range(0, self.count, _BLOCK):
            rows = slice(first, first + _BLOCK)
            total = total.merged_with(Moments.of(self.z[rows].astype(np.float64), self.d[rows].astype(np.float64)))
        return total

    def with_nothing_wanted(self, rows: Float32Array) -> TokenRows:
        """As `Moments.with_nothing_wanted`, worth the n tokens: the rows follow, times √(n / m)."""
        more = np.sqrt(np.float32(self.count / len(rows))) * rows
        nothing = np.zeros((len(rows), self.d_out), np.float32)
        return TokenRows(np.concatenate([self.z, more]), np.concatenate([self.d, nothing]), self.read + len(rows))

    def merged_with(self, other: TokenRows) -> TokenRows:
        """The rows of both, these first; of two samples each keeps its own share of the tokens it read.

        Raises:
            BadInputError: different widths.
        """
        if (self.d_in, self.d_out) != (other.d_in, other.d_out):
            raise BadInputError(
                f"rows of widths {(self.d_in, self.d_out)} and {(other.d_in, other.d_out)} cannot be merged"
            )
        return TokenRows(np.concatenate([self.z, other.z]), np.concatenate([self.d, other.d]), self.read + other.read)


def rows_are_less(tokens: int, d_in: int) -> bool:
    """Whether rows say all that moments say in less memory, and are solved in less time: in their own space."""
    return tokens < d_in


@dataclass(frozen=True, eq=False)
class ActivationStatistics:
    """What one capture recorded, by the spec that asked for it.

    Attributes:
        rows: of every `RowsSpec`.
        moments: of every `MomentsSpec` that is not in `token_rows`.
        token_rows: of those that allow it and recorded fewer tokens than Z is wide.
        memory: where moments and token rows lie, if they may be mapped.
    """

    rows: Mapping[RowsSpec, Rows]
    moments: Mapping[MomentsSpec, Moments]
    token_rows: Mapping[MomentsSpec, TokenRows] = field(default_factory=dict)
    memory: StatisticsMemory | None = None

    def sums_of(self, spec: MomentsSpec) -> Moments | TokenRows:
        """What was recorded for a spec that allows both."""
        return self.token_rows[spec] if spec in self.token_rows else self.moments[spec]

    def release(self) -> None:
        """Let go of what was looked at of mapped statistics, so that it counts no more; all of it stays valid."""
        if self.memory is not None:
            self.memory.release()

    def merged_with(self, other: ActivationStatistics) -> ActivationStatistics:
        """The statistics over the pairs of both captures, in memory; weights stay those of each.

        Where one has rows and the other moments, the result has moments.

        Raises:
            BadInputError: the captures recorded different things.
        """
        recorded = [*self.moments, *self.token_rows]
        if self.rows.keys() != other.rows.keys() or set(recorded) != {*other.moments, *other.token_rows}:
            raise BadInputError("statistics of different specs cannot be merged")
        moments: dict[MomentsSpec, Moments] = {}
        token_rows: dict[MomentsSpec, TokenRows] = {}
        for spec in recorded:
            ours, theirs = self.sums_of(spec), other.sums_of(spec)
            if isinstance(ours, TokenRows) and isinstance(theirs, TokenRows):
                token_rows[spec] = ours.merged_with(theirs)
            else:
                moments[spec] = _as_moments(ours).merged_with(_as_moments(theirs))
            self.release()
            other.release()
        rows = {spec: found.merged_with(other.rows[spec]) for spec, found in self.rows.items()}
        return ActivationStatistics(rows, moments, token_rows)


def _as_moments(recorded: Moments | TokenRows) -> Moments:
    return recorded.moments() if isinstance(recorded, TokenRows) else recorded
