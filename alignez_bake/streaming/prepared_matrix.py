"""One matrix of an edited tensor: its change, made once, and the base's rows beside it."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from alignez_bake.safetensors_io.dtypes import numpy_dtype_of

if TYPE_CHECKING:
    import numpy as np

    from alignez_bake.lowering.fold import EditedTensors
    from alignez_bake.lowering.matrix_change import MatrixChange
    from alignez_bake.lowering.row_kernel import RowBackend
    from alignez_bake.safetensors_io.dtypes import Array


@dataclass
class PreparedMatrix:
    """One matrix of an edited tensor; its change is made by one job, which the jobs of its rows wait for.

    Attributes:
        edited: all that changes.
        name: key of the tensor.
        index: which of its matrices.
        arithmetic: dtype in which its rows are computed.
        bounded: whether the change says how far one that was made in float32 may be off.
        backend: of its rows, where they are computed in float32.
    """

    edited: EditedTensors
    name: str
    index: int
    arithmetic: type[np.floating[Any]]
    bounded: bool = False
    backend: RowBackend = "numpy"
    _change: Future[MatrixChange] = field(default_factory=Future)

    @property
    def change(self) -> MatrixChange:
        """What `prepare` makes; waits for it, and raises its error."""
        return self._change.result()

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the base's values."""
        return numpy_dtype_of(self.edited.base_dtype(self.name))

    def prepare(self) -> None:
        """Make (B, A); an error is raised where the rows wait for it."""
        try:
            change = self.edited.matrix_change(
                self.name, self.index, self.arithmetic, bounded=self.bounded, backend=self.backend
            )
            self._change.set_result(change)
        except BaseException as error:  # noqa: BLE001  # raised by `change`
            self._change.set_exception(error)

    def stored_rows(self, first: int, end: int) -> Array:
        """Rows of the base as they are stored, finite or not."""
        offset = self.index * self.change.rows
        return self.edited.stored_rows(self.name, offset + first, offset + end)

    def rows(self, first: int, end: int) -> tuple[Array, Array]:
        """Rows of the base as they are stored, and in the dtype of the arithmetic."""
        offset = self.index * self.change.rows
        return self.edited.rows_of_base(self.name, offset + first, offset + end, self.arithmetic)
