"""Folding: the edited tensors of linear maps, in float64, rounded once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from alignez_bake.errors import BadInputError
from alignez_bake.low_rank import low_rank_of_projected, projected_rights
from alignez_bake.lowering.delivery import Delivery, delivery_sums
from alignez_bake.lowering.matrix_change import Dense, InputRows, MatrixChange, OutputRows, Write, overlap, row_blocks
from alignez_bake.lowering.row_kernel import add_product
from alignez_bake.safetensors_io.dtypes import cast_once, is_plain_float, numpy_dtype_of
from alignez_bake.safetensors_io.finite import all_finite, not_finite

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from alignez_bake.low_rank import LowRankChange
    from alignez_bake.lowering.decide import MapFold
    from alignez_bake.lowering.matrix_change import Part
    from alignez_bake.lowering.row_kernel import RowBackend
    from alignez_bake.lowering.slot import RowSource

    Float64Array = NDArray[np.float64]

# Of float32: half the distance from 1 to the next value.
_HALF_A_BIT: Final = 2.0**-24
_BLOCKS_AT_ONCE: Final = 2

__all__ = ["Delivery", "EditedTensors", "FoldedTensor", "Write", "delivery"]


@dataclass(frozen=True)
class FoldedTensor:
    """One edited tensor before it is rounded.

    Attributes:
        name: its key in the files.
        base: the stored values, as float64, in the stored layout.
        exact: the formula's values, float64, in the stored layout.
    """

    name: str
    base: Float64Array
    exact: Float64Array

    def rounded(self, dtype: str) -> NDArray[Any]:
        """The exact values rounded once, to nearest, to a file dtype such as "BF16".

        Raises:
            BadInputError: a value overflows the dtype.
        """
        stored = cast_once(self.exact, numpy_dtype_of(dtype))
        if not np.isfinite(stored.astype(np.float64)).all():
            largest = float(np.abs(self.exact).max())
            wider = "" if dtype in ("F32", "F64") else ", or --dtype float32"
            raise BadInputError(
                f"the edit overflows {dtype} in {self.name}: its largest value would be {largest:.3g}; "
                f"use a smaller strength{wider}"
            )
        return stored


class EditedTensors:
    """The tensors that edits change, computed one at a time when they are asked for.

    A fused tensor (phi3's gate_up_proj) can hold several sites, so the folds are grouped by weight. With
    (B, A, Δb) of `low_rank`, the site's part of the weight becomes

    - of a map: W' = W + B A, and b' = b + Δb;
    - of experts, whose sum y = Σ_e p_e (W_e z_e + b_e) + W_s z_s, the router's weights p_e and a shared expert (s), an
      edit y + L Rᵀ y reads: Σ_e p_e (I + L Rᵀ) (W_e z_e + b_e) + (I + L Rᵀ) W_s z_s, whatever the p_e are. So the same
      in every expert, routed or shared, each with an A of its own. A constant L s + c goes to every b_e, which is right
      where Σ_e p_e = 1, and only there do slots of experts have biases. So each b_e' = b_e + Δb_e, with the Δb_e that
      `low_rank` gives for b_e; it does not depend on W_e;
    - of an embedding, the map e = W 1_t of one-hot vectors with W = Eᵀ: W' = W + B A + Δb 1ᵀ, since the entries of a
      one-hot vector sum to one, so that a constant needs no bias.
    """

    def __init__(
        self, folds: Sequence[MapFold], source: RowSource, writes: Mapping[str, Sequence[Write]] | None = None
    ) -> None:
        """Group the folds by tensor; nothing is read yet.

        Args:
            folds: of `Lowering.folds`.
            source: the tensors that they change.
            writes: parts of tensors that are set after the folds; there the folds leave zeros.
        """
        self._source = source
        self._folds: dict[str, list[MapFold]] = {}
        self._writes = dict(writes or {})
        for fold in folds:
            for name in fold.slot.weights:
                self._folds.setdefault(name, []).append(fold)
            if fold.slot.bias is not None:
                self._folds.setdefault(fold.slot.bias, []).append(fold)

    @property
    def names(self) -> tuple[str, ...]:
        """Keys of the tensors that can change, in order of the edits."""
        return tuple(dict.fromkeys((*self._folds, *self._writes)))

    def __contains__(self, name: object) -> bool:
        """Whether the tensor can change."""
        return name in self._folds or name in self._writes

    def base_dtype(self, name: str) -> str:
        """The dtype that its values are read in, before the edit."""
        return self._source.entry(name).dtype

    def matrices(self, name: str) -> tuple[int, int, int]:
        """How many matrices a tensor holds, and their rows and columns as they are stored.

        A stack of experts' weights has one an expert; a bias is one row, biases of experts are the rows of one matrix.
        """
        shape = self._source.entry(name).shape
        *leading, columns = (1, *shape) if len(shape) < 2 else shape
        *stacked, rows = leading
        return math.prod(stacked), rows, columns

    def matrix_change(
        self,
        name: str,
        index: int = 0,
        dtype: type[np.floating[Any]] = np.float64,
        *,
        bounded: bool = False,
        backend: RowBackend = "numpy",
    ) -> MatrixChange:
        """How one matrix of an edited tensor changes.

        Where edits read the output, Rᵀ W is made first, from rows that are read block by block. In float32 each block
        of m rows is multiplied in float32, where rows are outputs, and the blocks' products are added in float64. With
        u = 2⁻²⁴, an entry of a block's product is off by at most (m + 1) u Σ_i |R_il| |W_ij| to first order, in any
        order of summation: m of products and sums, 1 of R. One more u stands for all that is smaller, and by Cauchy and
        Schwarz

            |error of (Rᵀ W)_lj|  <=  (m + 2) u ‖R_l‖ ‖W_j‖,

        W_j being a column of W. W itself is not rounded: it has 16 bits.

        Source: N. Higham, Accuracy and Stability of Numerical Algorithms, section 3.1.

        Args:
            name: key of the tensor.
            index: which of its matrices.
            dtype: of the arithmetic that the change is for.
            bounded: in float64, to say by this bound how far a change that was made in float32 may be off.
            backend: of products in float32.

        Raises:
            BadInputError: a weight that is not finite or not of a plain float dtype, edits that do not fit, or a
                constant that has no bias to live in.
        """
        _, rows, columns = self.matrices(name)
        folds = self._folds.get(name, [])
        parts: list[Part] = []
        terms = 0
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused when it is rounded
            projections, errors = self._projections(name, index, folds, dtype, backend, bounded=bounded)
            for fold, projected, error in zip(folds, projections, errors, strict=True):
                slot = fold.slot
                if name == slot.bias:
                    parts.append(Dense(self._bias_change(fold).astype(dtype), slot.rows))
                    continue
                shape = (slot.d_out, columns if slot.layout == "out_in" else rows)
                change = self._change(fold, shape, projected, error)
                b_matrix, a_matrix = (
                    np.ascontiguousarray(matrix, dtype) for matrix in (change.b_matrix, change.a_matrix)
                )
                terms += a_matrix.shape[0]
                if slot.layout == "out_in":
                    parts.append(OutputRows(slot.rows, b_matrix, a_matrix, change.a_error))
                else:
                    constant = change.delta_bias.astype(dtype) if slot.kind == "embedding" else None
                    b_transposed, a_transposed = (np.ascontiguousarray(matrix.T) for matrix in (b_matrix, a_matrix))
                    parts.append(InputRows(slot.rows, b_transposed, a_transposed, constant))
        return MatrixChange(
            name,
            index,
            rows,
            columns,
            tuple(parts),
            tuple(self._writes.get(name, ())),
            terms,
        )

    def rows_of_base(
        self, name: str, first: int, end: int, dtype: type[np.floating[Any]]
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Rows [first, end) of a tensor of the base, of all its matrices one behind the other.

        Returns:
            As they are stored [n, columns], and cast without loss to `dtype`.

        Raises:
            BadInputError: values that are not finite, or of another dtype than F64, F32, F16 or BF16.
        """
        values = self.stored_rows(name, first, end)
        if not all_finite(values):
            raise not_finite(name, self._source.place_of(name))
        return values, values.astype(dtype)

    def stored_rows(self, name: str, first: int, end: int) -> NDArray[Any]:
        """As `rows_of_base`, but as they are stored alone, finite or not."""
        stored = self._source.entry(name).dtype
        if not is_plain_float(stored):
            raise BadInputError(f"{name} has dtype {stored}: edits fold into F64, F32, F16 or BF16 only")
        return self._source.read_rows(name, first, end)

    def compute(self, name: str) -> FoldedTensor:
        """One whole edited tensor in float64.

        Raises:
            BadInputError: as `matrix_change` and `rows_of_base`.
        """
        count, rows, _ = self.matrices(name)
        _, base = self.rows_of_base(name, 0, count * rows, np.float64)
        exact = base.copy()
        for index in range(count):
            of_matrix = slice(index * rows, (index + 1) * rows)
            exact[of_matrix] += self.matrix_change(name, index).delta(base[of_matrix], 0)
        shape = self._source.entry(name).shape
        return FoldedTensor(name, base.reshape(shape), exact.reshape(shape))

    def _projections(
        self,
        name: str,
        index: int,
        folds: Sequence[MapFold],
        dtype: type[np.floating[Any]],
        backend: RowBackend,
        *,
        bounded: bool,
    ) -> tuple[list[Float64Array], list[Float64Array | None]]:
        """For each fold Rᵀ W [k, d_in] of all its R, one below the other, and its bound: one walk over the matrix."""
        _, rows, columns = self.matrices(name)
        rights = [_rights(fold) if name != fold.slot.bias else np.zeros((fold.slot.d_out, 0)) for fold in folds]
        widths = [columns if fold.slot.layout == "out_in" else rows for fold in folds]
        projected = [np.zeros((right.shape[1], d_in)) for right, d_in in zip(rights, widths, strict=True)]
        errors: list[Float64Array | None] = [np.zeros_like(total) if bounded else None for total in projected]
        if not any(total.shape[0] for total in projected):
            return projected, errors
        if any(fold.slot.layout != "out_in" for fold in folds):
            dtype = np.float64  # a row's product sums over all outputs at once
        rights = [right.astype(dtype) for right in rights]
        whole = len(folds) == 1 and overlap(folds[0].slot.rows, 0, rows)[0] == slice(0, rows, 1)
        if backend == "compiled" and dtype is np.float32 and whole and not bounded:
            self._add_compiled(name, index, np.ascontiguousarray(rights[0]), projected[0])
            return projected, errors
        squares = np.zeros((len(folds), columns))
        most = 0
        for first, end in row_blocks(rows, columns):
            _, values = self.rows_of_base(name, index * rows + first, index * rows + end, dtype)
            most = max(most, end - first)
            for number, (fold, right, total) in enumerate(zip(folds, rights, projected, strict=True)):
                if fold.slot.layout == "out_in":
                    inside, mine = overlap(fold.slot.rows, first, end - first)
                    np.add(total, right[mine].T @ values[inside], out=total)
                    if bounded:
                        squares[number] += np.einsum("ij,ij->j", values[inside], values[inside])
                else:
                    total[:, first:end] = (values[:, fold.slot.rows] @ right).T
        if bounded:
            for number, (fold, right) in enumerate(zip(folds, rights, strict=True)):
                if fold.slot.layout == "out_in":
                    lengths = np.linalg.norm(right, axis=0)[:, np.newaxis] * np.sqrt(squares[number])
                    errors[number] = (most + 2) * _HALF_A_BIT * lengths
        return projected, errors

    def _add_compiled(self, name: str, index: int, right: NDArray[np.floating[Any]], total: Float64Array) -> None:
        """Rᵀ W added to `total`, in the blocks of `row_blocks`."""
        _, rows, columns = self.matrices(name)
        blocks = list(row_blocks(rows, columns))
        for some in (blocks[number : number + _BLOCKS_AT_ONCE] for number in range(0, len(blocks), _BLOCKS_AT_ONCE)):
            (first, _), (_, end) = some[0], some[-1]
            # No name holds the rows: they are gone before the next ones are read.
            if not add_product(
                self.stored_rows(name, index * rows + first, index * rows + end),
                right[first:end],
                total,
                blocks[0][1],
            ):
                raise not_finite(name, self._source.place_of(name))

    def _bias_change(self, fold: MapFold) -> Float64Array:
        """Δb [d_out] of a map, [experts, d_out] of experts, one row at least; it does not depend on W."""
        assert fold.slot.bias is not None
        stored = np.atleast_2d(self._source.read(fold.slot.bias).astype(np.float64))[:, fold.slot.rows]
        shape = (fold.slot.d_out, fold.slot.d_in)

        def nothing(right: Float64Array) -> Float64Array:
            """In place of Rᵀ W."""
            return np.zeros((right.shape[1], fold.slot.d_in))

        return np.stack([low_rank_of_projected(fold.groups, shape, nothing, bias).delta_bias for bias in stored])

    def _change(
        self, fold: MapFold, shape: tuple[int, int], projected: Float64Array, error: Float64Array | None
    ) -> LowRankChange:
        slot = fold.slot
        bias = None
        if slot.kind == "map" and slot.bias is not None:
            bias = self._source.read(slot.bias).astype(np.float64)[slot.rows]
        change = low_rank_of_projected(
            fold.groups, shape, _in_turn(projected), bias, None if error is None else _in_turn(error)
        )
        if slot.bias is None and slot.kind != "embedding" and change.needs_bias:
            raise BadInputError(f"edits at {slot.site} have a constant, but {slot.weight} has no bias to hold it")
        return change


def _in_turn(stacked: Float64Array) -> Callable[[Float64Array], Float64Array]:
    """The rows of each R in turn, of all that lie one below the other."""
    seen = 0

    def rows(right: Float64Array) -> Float64Array:
        nonlocal seen
        first, seen = seen, seen + right.shape[1]
        return stacked[first:seen]

    return rows


def _rights(fold: MapFold) -> Float64Array:
    rights = [right.astype(np.float64) for right in projected_rights(fold.groups)]
    return np.concatenate([np.zeros((fold.slot.d_out, 0)), *rights], axis=1)


def delivery(tensor: FoldedTensor, stored: NDArray[Any]) -> Delivery:
    """Compare what was stored with what the formula asks for; `stored` has the shape of `tensor.exact`."""
    base, exact, values = (np.atleast_1d(part) for part in (tensor.base, tensor.exact, stored))
    return delivery_sums(base, exact - base, values).delivery(tensor.name)
