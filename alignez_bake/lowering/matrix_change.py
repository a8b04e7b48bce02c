"""How one stored matrix changes, ready to be applied to any of its rows.

A tensor is seen as matrices of rows as they lie in the file: a weight is one, a stack of experts has one an expert, a
bias is one row. With (B, A) of `low_rank` the rows of a map's weight change by

    stored [d_out, d_in]:  ΔW[rows] = B[rows] A            stored [d_in, d_out]:  ΔWᵀ[rows] = (B A[:, rows])ᵀ

so whoever knows B and A, which are small, needs of W no more than the rows at hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

# Of values in a block: a megabyte in float32, so that a few such arrays stay near a core from one step to the next.
_BLOCK_VALUES = 1 << 18


def row_blocks(rows: int, columns: int, values: int = _BLOCK_VALUES) -> Iterator[tuple[int, int]]:
    """The rows [first, end) of blocks of about so many values, in order; at least one row each.

    What is summed over rows is summed block by block, so the blocks are the same wherever a matrix is walked.
    """
    step = max(1, values // max(columns, 1))
    for first in range(0, rows, step):
        yield first, min(first + step, rows)


class Write(NamedTuple):
    """New values for a part of a tensor, in the stored layout: what a hidden unit puts into its rows and columns."""

    part: tuple[slice, ...]
    values: NDArray[np.float64]


class Part(Protocol):
    """What one cause adds to a matrix."""

    def add(self, delta: NDArray[Any], first: int) -> None:
        """Add its part of rows [first, first + n) to `delta` [n, columns], in place and in its dtype."""
        ...

    def factors(self, shape: tuple[int, ...], first: int) -> tuple[NDArray[Any], NDArray[Any]] | None:
        """The same as two matrices to be multiplied, where it covers all of these rows: nothing is added up then."""
        ...

    def add_magnitude(self, total: NDArray[Any], first: int) -> None:
        """Add |B| |A| instead of B A: what bounds the rounding of the sum."""
        ...

    def add_error(self, total: NDArray[Any], first: int) -> None:
        """Add a bound of what comes from an A that is off."""
        ...


@dataclass(frozen=True)
class OutputRows:
    """ΔW = B A where rows of the file are outputs.

    Attributes:
        rows: the outputs that belong to the site, of all that the matrix has.
        b_matrix: B [outputs of the site, k].
        a_matrix: A [k, columns].
        a_error: how far A may be off where Rᵀ W was summed up in float32 [k, columns]; None where nobody asked.
    """

    rows: slice
    b_matrix: NDArray[Any]
    a_matrix: NDArray[Any]
    a_error: NDArray[np.float64] | None = None

    def add(self, delta: NDArray[Any], first: int) -> None:
        """As `Part`."""
        inside, mine = overlap(self.rows, first, len(delta))
        delta[inside] += self.b_matrix[mine] @ self.a_matrix

    def factors(self, shape: tuple[int, ...], first: int) -> tuple[NDArray[Any], NDArray[Any]] | None:
        """As `Part`."""
        inside, mine = overlap(self.rows, first, shape[0])
        return (self.b_matrix[mine], self.a_matrix) if inside == slice(0, shape[0], 1) else None

    def add_magnitude(self, total: NDArray[Any], first: int) -> None:
        """As `Part`."""
        inside, mine = overlap(self.rows, first, len(total))
        total[inside] += np.abs(self.b_matrix[mine]) @ np.abs(self.a_matrix)

    def add_error(self, total: NDArray[Any], first: int) -> None:
        """As `Part`."""
        if self.a_error is not None:
            inside, mine = overlap(self.rows, first, len(total))
            total[inside] += np.abs(self.b_matrix[mine]) @ self.a_error


@dataclass(frozen=True)
class InputRows:
    """ΔWᵀ = (B A + Δb 1ᵀ)ᵀ where rows of the file are inputs.

    Attributes:
        outputs: the columns that belong to the site.
        b_transposed: Bᵀ [k, outputs of the site].
        a_transposed: Aᵀ [rows, k].
        constant: Δb [outputs of the site], which an embedding takes since its inputs are one-hot; None elsewhere.
    """

    outputs: slice
    b_transposed: NDArray[Any]
    a_transposed: NDArray[Any]
    constant: NDArray[Any] | None = None

    def add(self, delta: NDArray[Any], first: int) -> None:
        """As `Part`."""
        columns = delta[:, self.outputs]
        columns += self.a_transposed[first : first + len(delta)] @ self.b_transposed
        if self.constant is not None:
            columns += self.constant

    def factors(self, shape: tuple[int, ...], first: int) -> tuple[NDArray[Any], NDArray[Any]] | None:
        """As `Part`."""
        if self.constant is not None or self.b_transposed.shape[1] != shape[1]:
            return None
        return self.a_transposed[first : first + shape[0]], self.b_transposed

    def add_magnitude(self, total: NDArray[Any], first: int) -> None:
        """As `Part`."""
        columns = total[:, self.outputs]
        columns += np.abs(self.a_transposed[first : first + len(total)]) @ np.abs(self.b_transposed)
        if self.constant is not None:
            columns += np.abs(self.constant)

    def add_error(self, total: NDArray[Any], first: int) -> None:
        """As `Part`: nothing, since Rᵀ W is made in float64 where rows are inputs."""


@dataclass(frozen=True)
class Dense:
    """A change that is known value by value, of biases.

    Attributes:
        values: [rows, columns of the site].
        columns: the columns that belong to the site.
    """

    values: NDArray[Any]
    columns: slice

    def add(self, delta: NDArray[Any], first: int) -> None:
        """As `Part`."""
        delta[:, self.columns] += self.values[first : first + len(delta)]

    def factors(self, shape: tuple[int, ...], first: int) -> tuple[NDArray[Any], NDArray[Any]] | None:
        """As `Part`."""
        del shape, first
        return None  # biases are small

    def add_magnitude(self, total: NDArray[Any], first: int) -> None:
        """As `Part`."""
        total[:, self.columns] += np.abs(self.values[first : first + len(total)])

    def add_error(self, total: NDArray[Any], first: int) -> None:
        """As `Part`: nothing."""


@dataclass(frozen=True)
class MatrixChange:
    """The change of one matrix, in one dtype of arithmetic.

    Attributes:
        name: key of the tensor.
        index: which of the tensor's matrices.
        rows, columns: its shape as it is stored.
        parts: what is added.
        writes: what is set afterwards; there the parts leave zeros.
        terms: most products that a value is the sum of, for bounds of rounding.
    """

    name: str
    index: int
    rows: int
    columns: int
    parts: tuple[Part, ...]
    writes: tuple[Write, ...] = ()
    terms: int = 0

    def delta(self, base: NDArray[Any], first: int) -> NDArray[Any]:
        """ΔW of rows [first, first + n).

        Args:
            base: those rows of the base [n, columns], in the dtype of the arithmetic.
            first: number of the first of them.

        Returns:
            A new array of the same shape and dtype.
        """
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused when it is rounded
            if (factors := self.factors(base.shape, first)) is not None:
                product: NDArray[Any] = factors[0] @ factors[1]
                return product
            delta = np.zeros_like(base)
            for part in self.parts:
                part.add(delta, first)
            for write in self.writes:
                *rows, columns = write.part
                inside, mine = overlap(rows[0], first, len(base)) if rows else (slice(0, 1), slice(0, 1))
                values = np.atleast_2d(write.values)[mine]
                delta[inside, columns] = values - base[inside, columns]
        return delta

    def factors(self, shape: tuple[int, ...], first: int) -> tuple[NDArray[Any], NDArray[Any]] | None:
        """The two matrices whose product is all of ΔW of rows [first, first + n), where there are such.

        Args:
            shape: (n, columns).
            first: number of the first of these rows.
        """
        if len(self.parts) != 1 or self.writes:
            return None
        return self.parts[0].factors(shape, first)

    def magnitude(self, base: NDArray[Any], first: int) -> NDArray[Any]:
        """|W| + |B| |A| of the same rows: base + ΔW is computed within (terms + 2) · u of it, u half a last bit."""
        total: NDArray[Any] = np.abs(base)
        for part in self.parts:
            part.add_magnitude(total, first)
        for write in self.writes:
            *rows, columns = write.part
            inside, mine = overlap(rows[0], first, len(base)) if rows else (slice(0, 1), slice(0, 1))
            total[inside, columns] += np.abs(np.atleast_2d(write.values)[mine])
        return total

    def projection_error(self, shape: tuple[int, ...], first: int) -> NDArray[Any]:
        """Of rows [first, first + n): how far ΔW may be off because Rᵀ W was summed up in float32, in float64."""
        total: NDArray[Any] = np.zeros(shape)
        for part in self.parts:
            part.add_error(total, first)
        return total


def overlap(chosen: slice, first: int, count: int) -> tuple[slice, slice]:
    """Which of rows [first, first + count) are chosen, counted from `first`; and which of the chosen ones these are."""
    start, stop, step = chosen.start, chosen.stop, chosen.step or 1
    low = max(0, -(-(first - start) // step))
    high = max(low, -(-(min(stop, first + count) - start) // step))
    begin = start + low * step - first
    return slice(begin, begin + (high - low) * step, step) if high > low else slice(0, 0), slice(low, high)
