"""An edited tensor as a stream: each block of rows read, changed, rounded once and measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from alignez_bake.errors import BadInputError
from alignez_bake.lowering.delivery import delivery_sums
from alignez_bake.lowering.matrix_change import row_blocks
from alignez_bake.safetensors_io.dtypes import BY_NAME
from alignez_bake.safetensors_io.finite import all_finite
from alignez_bake.streaming.prepared_matrix import PreparedMatrix
from alignez_bake.streaming.rounding_choice import AskedRounding, RoundedMatrix
from alignez_bake.streaming.segments import Block, Stretch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from alignez_bake.lowering.fold import EditedTensors
    from alignez_bake.safetensors_io.dtypes import Array


def arithmetic_dtype(stored: str, written: str) -> type[np.floating[Any]]:
    """float32 where both files have 16 bits, else float64.

    A value of 16 bits is one of float32, so base + ΔW in float32 is the formula within some 2⁻²⁴ of its terms, and the
    result one of its two neighbours in 16 bits: the nearer one, but where the formula lies that close to the middle.
    """
    return np.float32 if max(BY_NAME[stored].bits, BY_NAME[written].bits) <= 16 else np.float64


@dataclass(frozen=True)
class EditedTensor:
    """A tensor that edits change.

    Attributes:
        edited: all that changes.
        name: its key.
        dtype: the file's spelling of the dtype of the result.
        shape: its dimensions.
        base_dtype: the dtype that the base holds it in.
        source: its bytes in the base's file; None where it has another shape there, or is not there.
        rounding: how its values are rounded.
    """

    edited: EditedTensors
    name: str
    dtype: str
    shape: tuple[int, ...]
    base_dtype: str
    source: tuple[int, int] | None
    rounding: AskedRounding = "auto"
    noted: bool = True

    def stretches(self) -> Iterator[Stretch]:
        """Its matrices: each has a change of its own."""
        count, rows, columns = self.edited.matrices(self.name)
        for index in range(count):
            arithmetic = arithmetic_dtype(self.base_dtype, self.dtype)
            matrix = RoundedMatrix(PreparedMatrix(self.edited, self.name, index, arithmetic), self.rounding, self.dtype)
            yield Stretch(self._blocks(matrix, rows, columns), matrix.prepare)

    def _blocks(self, matrix: RoundedMatrix, rows: int, columns: int) -> Iterator[Callable[[], Block]]:
        for first, end in row_blocks(rows, columns):
            yield lambda first=first, end=end: self._block(matrix, first, end)  # type: ignore[misc]

    def _block(self, matrix: RoundedMatrix, first: int, end: int) -> Block:
        stored, base = matrix.matrix.rows(first, end)
        delta = matrix.matrix.change.delta(base, first)
        exact = base + delta
        result = matrix.rounded(exact, delta)
        if not all_finite(result):
            raise overflow(self.name, self.dtype, exact)
        passed = stored.reshape(-1).view(np.uint8) if self.source is not None else None
        return Block(passed, result.reshape(-1).view(np.uint8), delivery_sums(base, delta, result), matrix.rounding)


def overflow(name: str, dtype: str, exact: Array) -> BadInputError:
    """The error of an edit whose values a dtype cannot hold."""
    wider = "" if dtype in ("F32", "F64") else ", or --dtype float32"
    return BadInputError(
        f"the edit overflows {dtype} in {name}: its largest value would be {float(np.abs(exact).max()):.3g}; "
        f"use a smaller strength{wider}"
    )
