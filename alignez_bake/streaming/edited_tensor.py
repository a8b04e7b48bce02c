"""An edited tensor, any part of which is made by itself: rows read, changed, rounded once and measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from alignez_bake.errors import BadInputError
from alignez_bake.lowering.delivery import DeliverySums, delivery_sums
from alignez_bake.lowering.matrix_change import row_blocks
from alignez_bake.safetensors_io.dtypes import BY_NAME, numpy_dtype_of
from alignez_bake.safetensors_io.finite import all_finite
from alignez_bake.streaming.prepared_matrix import PreparedMatrix
from alignez_bake.streaming.rounding_choice import AskedRounding, RoundedMatrix
from alignez_bake.streaming.segments import Made

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from alignez_bake.lowering.fold import EditedTensors
    from alignez_bake.lowering.rounding import Rounding
    from alignez_bake.lowering.row_kernel import RowBackend
    from alignez_bake.safetensors_io.dtypes import Array
    from alignez_bake.streaming.segments import Preparation


def arithmetic_dtype(stored: str, written: str) -> type[np.floating[Any]]:
    """float32 where both files have 16 bits, else float64.

    A value of 16 bits is one of float32, so base + ΔW in float32 is the formula within some 2⁻²⁴ of its terms, and the
    result one of its two neighbours in 16 bits: the nearer one, but where the formula lies that close to the middle.
    """
    return np.float32 if max(BY_NAME[stored].bits, BY_NAME[written].bits) <= 16 else np.float64


@dataclass(frozen=True)
class EditedTensor:
    """A tensor that edits change.

    A row whose bytes lie in two parts is computed with both, by itself, so that both get the same values; it is counted
    in the sums of the part in which it begins.

    Attributes:
        edited: all that changes.
        name: its key.
        dtype: the file's spelling of the dtype of the result.
        shape: its dimensions.
        base_dtype: the dtype that the base holds it in.
        source: its bytes in the base's file; None where it has another shape there, or is not there.
        rounding: how its values are rounded.
        backend: of its rows, where that can compute them.
    """

    edited: EditedTensors
    name: str
    dtype: str
    shape: tuple[int, ...]
    base_dtype: str
    source: tuple[int, int] | None
    rounding: AskedRounding = "auto"
    backend: RowBackend = "numpy"
    noted: bool = True

    def preparations(self, begin: int, end: int) -> range:
        """One for each of its matrices."""
        _, rows, columns = self.edited.matrices(self.name)
        matrix_bytes = rows * self._row_bytes(columns)
        return range(begin // matrix_bytes, -(-end // matrix_bytes))

    def preparation(self, number: int) -> RoundedMatrix:
        """The change of one matrix."""
        arithmetic = arithmetic_dtype(self.base_dtype, self.dtype)
        matrix = PreparedMatrix(self.edited, self.name, number, arithmetic, backend=self.backend)
        return RoundedMatrix(matrix, self.rounding, self.dtype)

    def fill(self, begin: int, end: int, out: Array, base: Array | None, prepared: Mapping[int, Preparation]) -> Made:
        """As `Segment`."""
        _, rows, columns = self.edited.matrices(self.name)
        row_bytes, sums = self._row_bytes(columns), DeliverySums()
        rounding: Rounding = "nearest"
        for first, last in _runs(begin, end, row_bytes, rows):
            matrix = prepared[first // rows]
            assert isinstance(matrix, RoundedMatrix)
            low, high = first * row_bytes, last * row_bytes
            is_whole, stored = begin <= low and high <= end, None
            if is_whole and base is not None:
                stored = base[low - begin : high - begin].view(numpy_dtype_of(self.base_dtype)).reshape(-1, columns)
            data = out[low - begin : high - begin] if is_whole else np.empty(high - low, np.uint8)
            found = self._make(matrix, first % rows, stored, data.view(numpy_dtype_of(self.dtype)).reshape(-1, columns))
            if not is_whole:
                inside, until = max(begin, low), min(end, high)
                out[inside - begin : until - begin] = data[inside - low : until - low]
            if begin <= low:
                sums += found
                rounding = "carry" if matrix.rounding == "carry" else rounding
        return Made(sums, rounding)

    def _make(self, matrix: RoundedMatrix, first: int, stored: Array | None, out: Array) -> DeliverySums:
        """Make rows [first, first + n) of one matrix.

        Args:
            matrix: of which.
            first: number of the first of them.
            stored: those of the base; read where None.
            out: where they go [n, columns].

        Returns:
            How much of the edit they hold.
        """
        compiled = matrix.is_compiled
        # The kernel needs no memory of its own for rows, so it takes all that are there at once.
        blocks = [(0, len(out))] if compiled and stored is not None else row_blocks(*out.shape)
        make, sums = self._by_kernel if compiled else self._by_numpy, DeliverySums()
        for low, high in blocks:
            sums += make(matrix, first + low, None if stored is None else stored[low:high], out[low:high])
        return sums

    def _by_kernel(self, matrix: RoundedMatrix, first: int, stored: Array | None, out: Array) -> DeliverySums:
        end = first + len(out)
        rows = matrix.matrix.stored_rows(first, end) if stored is None else stored
        finite, sums = matrix.by_kernel(first, rows, out)
        if sums is not None:
            return sums
        _, base = matrix.matrix.rows(first, end)  # says so where it is the base that is not finite
        delta = matrix.matrix.change.delta(base, first)
        if not finite:
            raise overflow(self.name, self.dtype, base + delta)
        return delivery_sums(base, delta, out)

    def _by_numpy(self, matrix: RoundedMatrix, first: int, stored: Array | None, out: Array) -> DeliverySums:
        if stored is None:
            _, base = matrix.matrix.rows(first, first + len(out))
        else:
            base = stored.astype(matrix.matrix.arithmetic)
        delta = matrix.matrix.change.delta(base, first)
        with np.errstate(over="ignore", invalid="ignore"):
            exact = base + delta
        result = matrix.rounded(exact, delta)
        if not all_finite(result):
            matrix.matrix.rows(first, first + len(out))  # says so where it is the base that is not finite
            raise overflow(self.name, self.dtype, exact)
        out[:] = result
        return delivery_sums(base, delta, result, exact)

    def _row_bytes(self, columns: int) -> int:
        return columns * (BY_NAME[self.dtype].bits // 8)


def _runs(begin: int, end: int, row_bytes: int, rows: int) -> Iterator[tuple[int, int]]:
    """The rows that have a byte in [begin, end), of one matrix at a time; rows that are cut alone."""
    first, last = begin // row_bytes, -(-end // row_bytes)
    row, whole = first, end // row_bytes
    if begin % row_bytes:
        yield row, row + 1
        row += 1
    while row < whole:
        stop = min(whole, (row // rows + 1) * rows)
        yield row, stop
        row = stop
    if row < last:
        yield row, last


def overflow(name: str, dtype: str, exact: Array) -> BadInputError:
    """The error of an edit whose values a dtype cannot hold."""
    wider = "" if dtype in ("F32", "F64") else ", or --dtype float32"
    return BadInputError(
        f"the edit overflows {dtype} in {name}: its largest value would be {float(np.abs(exact).max()):.3g}; "
        f"use a smaller strength{wider}"
    )
