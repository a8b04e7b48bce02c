"""FP8 weights with a scale a block, read as the numbers that they stand for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from alignez_bake.fp8_blocks import scale_of
from alignez_bake.safetensors_io.header import TensorEntry

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from alignez_bake.fp8_blocks import Fp8Blocks
    from alignez_bake.lowering.slot import RowSource


class DequantisedTensors:
    """The tensors of a base, those of codes as float64; all others as they are.

    A code of e4m3 has 4 significant bits and a scale at most 24, so their product is exact in float64, and nothing is
    rounded before an edit is added.
    """

    def __init__(self, tensors: RowSource, blocks: Fp8Blocks) -> None:
        """Nothing is read yet."""
        self._tensors = tensors
        self._blocks = blocks

    def __contains__(self, name: object) -> bool:
        """Whether there is a tensor of this name."""
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        """Names of all tensors."""
        return iter(self._tensors)

    def __len__(self) -> int:
        """Number of tensors."""
        return len(self._tensors)

    def entry(self, name: str) -> TensorEntry:
        """Dtype and shape of a tensor; codes are F64, of as many bytes from 0 on."""
        entry = self._tensors.entry(name)
        if not self._blocks.is_coded(self._tensors, name):
            return entry
        return TensorEntry(name, "F64", entry.shape, 0, 8 * entry.nbytes)

    def place_of(self, name: str) -> Path:
        """Path of the file that holds a tensor's codes.

        Raises:
            BadInputError: no tensor of this name.
        """
        return self._tensors.place_of(name)

    def read(self, name: str) -> NDArray[Any]:
        """A tensor, codes as float64.

        Raises:
            BadInputError: as `Fp8Blocks.check`, or a file that changed.
        """
        if not self._blocks.is_coded(self._tensors, name):
            return self._tensors.read(name)
        rows, _ = self._tensors.entry(name).shape
        return self.read_rows(name, 0, rows)

    def read_rows(self, name: str, first: int, end: int) -> NDArray[Any]:
        """Rows [first, end) of a tensor, codes as float64.

        Raises:
            BadInputError: as `Fp8Blocks.check`, or a file that changed.
        """
        if not self._blocks.is_coded(self._tensors, name):
            return self._tensors.read_rows(name, first, end)
        self._blocks.check(self._tensors, name)
        values: NDArray[Any] = self._tensors.read_rows(name, first, end).astype(np.float64)
        height, width = self._blocks.rows, self._blocks.columns
        top = first // height
        scales = self._tensors.read_rows(scale_of(name), top, -(-end // height)).astype(np.float64)
        for index, of_blocks in enumerate(scales, start=top):
            part = slice(max(index * height - first, 0), (index + 1) * height - first)
            values[part] *= np.repeat(of_blocks, width)[: values.shape[1]]
        return values
