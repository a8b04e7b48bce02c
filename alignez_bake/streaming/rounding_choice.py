"""Whether a matrix is rounded to nearest, or so that the edit survives it."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import numpy as np

from alignez_bake.certificate.verdict import MIN_DELIVERED_SHARE
from alignez_bake.errors import BadInputError
from alignez_bake.lowering.delivery import DeliverySums, delivery_sums, is_plain
from alignez_bake.lowering.rounding import Rounding, round_rows
from alignez_bake.lowering.row_kernel import edit_rows, is_16_bit
from alignez_bake.safetensors_io.dtypes import BY_NAME, numpy_dtype_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from alignez_bake.streaming.prepared_matrix import PreparedMatrix

AskedRounding = Literal["auto", "nearest", "carry"]
ROUNDINGS: Final[tuple[AskedRounding, ...]] = get_args(AskedRounding)
# So many rows, next to each other, at so many places.
_ROWS_LOOKED_AT: Final = 8
_PLACES_LOOKED_AT: Final = 8
# Where carrying adds more noise than the edit is large, in norm, the edit is better not stored like this.
_MOST_RESIDUAL: Final = 1.0


def checked_rounding(name: str) -> AskedRounding:
    """The rule of a name.

    Raises:
        BadInputError: there is none.
    """
    for rounding in ROUNDINGS:
        if name == rounding:
            return rounding
    raise BadInputError(f"rounding {name!r} is unknown: use {', '.join(ROUNDINGS)}")


@dataclass
class RoundedMatrix:
    """An edited matrix and how it is rounded; both are known once it is prepared.

    `auto` looks at some rows at fixed places, so that it always chooses the same: to nearest, unless that would keep
    less than the certificate asks for; then errors are carried, unless their noise would be larger than the edit.

    Attributes:
        matrix: what changes.
        asked: the rule.
        dtype: of the result, the file's spelling.
    """

    matrix: PreparedMatrix
    asked: AskedRounding
    dtype: str
    _rounding: Future[Rounding] = field(default_factory=Future)

    @property
    def rounding(self) -> Rounding:
        """The rule that was chosen; waits for it."""
        return self._rounding.result()

    def prepare(self) -> None:
        """Make the change, then choose; an error is raised where the rows wait for it."""
        try:
            self.matrix.prepare()
            self._rounding.set_result(self._chosen())
        except BaseException as error:  # noqa: BLE001  # raised by `rounding`
            self._rounding.set_exception(error)

    @property
    def is_compiled(self) -> bool:
        """Whether the kernel computes its rows: if asked to, products in float32, 16 bits to 16, to nearest."""
        return self.rounding == "nearest" and self._fits_kernel

    @property
    def _fits_kernel(self) -> bool:
        change, kinds = self.matrix.change, (self.matrix.dtype, numpy_dtype_of(self.dtype))
        return (
            self.matrix.backend == "compiled"
            and all(is_16_bit(kind) for kind in kinds)
            and change.factors((change.rows, change.columns), 0) is not None
        )

    def by_kernel(self, first: int, stored: NDArray[Any], out: NDArray[Any]) -> tuple[bool, DeliverySums | None]:
        """Make rows [first, first + n) to nearest, by the kernel.

        Args:
            first: number of the first of them.
            stored: those of the base.
            out: where they go [n, columns].

        Returns:
            Whether all are finite, and how much of the edit they hold; None where that needs another unit than 1.
        """
        factors = self.matrix.change.factors(out.shape, first)
        assert factors is not None
        rows = edit_rows(stored, *factors, out)
        if not (rows.finite and is_plain(rows.change, out.size)):
            return rows.finite, None
        return True, DeliverySums(rows.change + rows.aligned, rows.change, rows.residual, rows.base, 0)

    def rounded(self, exact: NDArray[Any], delta: NDArray[Any]) -> NDArray[Any]:
        """Rows as they are stored."""
        return round_rows(exact, numpy_dtype_of(self.dtype), change=delta if self.rounding == "carry" else None)

    def _chosen(self) -> Rounding:
        if self.asked != "auto":
            return self.asked
        if BY_NAME[self.dtype].bits > 16:
            return "nearest"  # no edit of a size that is worth having is lost in 32 bits
        share = self._looked_at("nearest").delivery("").share
        if share is None or share >= MIN_DELIVERED_SHARE:
            return "nearest"
        residual = self._looked_at("carry").delivery("").residual
        return "carry" if residual is not None and residual <= _MOST_RESIDUAL else "nearest"

    def _looked_at(self, rounding: Rounding) -> DeliverySums:
        """What a rule would keep in a few rows."""
        sums, rows = DeliverySums(), self.matrix.change.rows
        # Without memory of its own for these rows, which grows with their width.
        compiled = rounding == "nearest" and self._fits_kernel
        for row in range(0, rows, max(_ROWS_LOOKED_AT, -(-rows // _PLACES_LOOKED_AT))):
            end = min(row + _ROWS_LOOKED_AT, rows)
            if compiled:
                stored = self.matrix.stored_rows(row, end)
                _, found = self.by_kernel(row, stored, np.empty(stored.shape, numpy_dtype_of(self.dtype)))
                if found is not None:
                    sums += found
                    continue
            _, base = self.matrix.rows(row, end)
            delta = self.matrix.change.delta(base, row)
            exact, change = base + delta, delta if rounding == "carry" else None
            sums += delivery_sums(base, delta, round_rows(exact, numpy_dtype_of(self.dtype), change=change), exact)
        return sums
