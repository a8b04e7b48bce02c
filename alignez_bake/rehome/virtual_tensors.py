"""The tensors of an equivalent base: the base's own, some grown by zeros, and new ones of zeros or copies."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from alignez_bake.safetensors_io.dtypes import numpy_dtype_of
from alignez_bake.safetensors_io.file_access import BLOCK_BYTES
from alignez_bake.safetensors_io.header import TensorEntry

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from alignez_bake.safetensors_io.reader import TensorFolder


@dataclass(frozen=True)
class NewTensor:
    """A tensor that the base lacks, all zeros, or a copy of one of the base's.

    Attributes:
        dtype: the file's spelling, such as "BF16".
        shape: its dimensions.
        file: the file it belongs into: that of the weight whose bias it is, or of the tensor that it copies.
        copy_of: name of the base's tensor whose values it has; None: zeros.
    """

    dtype: str
    shape: tuple[int, ...]
    file: str
    copy_of: str | None = None


class VirtualTensors:
    """What a base's files would hold as an equivalent model; nothing is stored, tensors are made when read.

    It answers like a `TensorFolder`, but for `header` and `index`: it has no files of its own, and those of `base` do
    not tell of the new tensors.

    Attributes:
        base: the base's tensors.
        files: names of the files over which the tensors are spread, the base's own.
    """

    def __init__(self, base: TensorFolder, new: Mapping[str, NewTensor], grown: Mapping[str, tuple[int, ...]]) -> None:
        """Describe the tensors.

        Args:
            base: the base's tensors.
            new: tensors that the base lacks.
            grown: shapes of tensors of the base that become larger; the base's values stay at the leading corner.

        Raises:
            ValueError: a new tensor that the base has, or a copy of another dtype or shape; a shape that the base's
                does not fit into.
        """
        for name, tensor in new.items():
            if name in base:
                raise ValueError(f"{name} is a tensor of the base")
            if tensor.copy_of is not None:
                entry = base.entry(tensor.copy_of)
                if (entry.dtype, entry.shape) != (tensor.dtype, tensor.shape):
                    raise ValueError(f"{name} is no copy of {tensor.copy_of}: dtype or shape differ")
        for name, shape in grown.items():
            old = base.entry(name).shape
            if len(old) != len(shape) or any(mine < theirs for mine, theirs in zip(shape, old, strict=True)):
                raise ValueError(f"{name} of shape {list(old)} cannot grow to {list(shape)}")
        self.base = base
        self.path = base.path
        self.files = base.files
        self._new = dict(new)
        self._grown = {name: shape for name, shape in grown.items() if shape != base.entry(name).shape}

    def with_new(self, name: str, tensor: NewTensor) -> VirtualTensors:
        """The same with one more tensor.

        Raises:
            ValueError: as on construction.
        """
        return VirtualTensors(self.base, {**self._new, name: tensor}, self._grown)

    def __contains__(self, name: object) -> bool:
        """Whether there is a tensor of this name."""
        return name in self._new or name in self.base

    def __iter__(self) -> Iterator[str]:
        """Names of all tensors, sorted."""
        return iter(self.names())

    def __len__(self) -> int:
        """Number of tensors."""
        return len(self.base) + len(self._new)

    def names(self) -> list[str]:
        """Names of all tensors, sorted."""
        return sorted([*self.base.names(), *self._new])

    def file_of(self, name: str) -> str:
        """Name of the file that a tensor belongs into.

        Raises:
            BadInputError: no tensor of this name.
        """
        return self._new[name].file if name in self._new else self.base.file_of(name)

    def place_of(self, name: str) -> Path:
        """Path of that file, in the base.

        Raises:
            BadInputError: no tensor of this name.
        """
        return self.path / self.file_of(name)

    def is_base(self, name: str) -> bool:
        """Whether a tensor is the base's own, byte for byte.

        Raises:
            BadInputError: no tensor of this name.
        """
        self.file_of(name)
        return name not in self._new and name not in self._grown

    def entry(self, name: str) -> TensorEntry:
        """Dtype and shape of a tensor.

        A tensor that is not the base's own lies in no file yet, so its bytes are counted from its own start.

        Raises:
            BadInputError: no tensor of this name.
        """
        if self.is_base(name):
            return self.base.entry(name)
        if name in self._new:
            dtype, shape = self._new[name].dtype, self._new[name].shape
        else:
            dtype, shape = self.base.entry(name).dtype, self._grown[name]
        return TensorEntry(name, dtype, shape, 0, math.prod(shape) * numpy_dtype_of(dtype).itemsize)

    def read(self, name: str) -> NDArray[Any]:
        """A tensor as a fresh, writable array of its dtype and shape.

        Raises:
            BadInputError: no such tensor, or the base's file changed meanwhile.
        """
        if self.is_base(name):
            return self.base.read(name)
        if (copied := self._copied(name)) is not None:
            return self.base.read(copied)
        entry = self.entry(name)
        values = np.zeros(entry.shape, numpy_dtype_of(entry.dtype))
        if name in self._grown:
            old = self.base.read(name)
            values[tuple(slice(size) for size in old.shape)] = old
        return values

    def read_rows(self, name: str, first: int, end: int) -> NDArray[Any]:
        """Rows [first, end) of a tensor, as `TensorFolder.read_rows`; only matrices and vectors are new or grown.

        Raises:
            BadInputError: no such tensor, or the base's file changed meanwhile.
        """
        if self.is_base(name):
            return self.base.read_rows(name, first, end)
        if (copied := self._copied(name)) is not None:
            return self.base.read_rows(copied, first, end)
        entry = self.entry(name)
        values = np.zeros((end - first, entry.rows_and_columns[1]), numpy_dtype_of(entry.dtype))
        if name in self._grown:
            rows, columns = self.base.entry(name).rows_and_columns
            held = self.base.read_rows(name, min(first, rows), min(end, rows))
            values[: len(held), :columns] = held
        return values

    def read_bytes_range(self, name: str, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of a tensor's data, as `TensorFolder.read_bytes_range`.

        Raises:
            BadInputError: no such tensor, or the base's file changed meanwhile.
            ValueError: the range leaves the tensor.
        """
        if self.is_base(name):
            return self.base.read_bytes_range(name, start, stop)
        if (copied := self._copied(name)) is not None:
            return self.base.read_bytes_range(copied, start, stop)
        data = self._data(name)
        if not 0 <= start <= stop <= len(data):
            raise ValueError(f"bytes [{start}, {stop}) are not in tensor {name} of {len(data)} bytes")
        return bytes(data[start:stop])

    def iter_blocks(self, name: str, max_bytes: int = BLOCK_BYTES) -> Iterator[memoryview]:
        """A tensor's bytes in order, in blocks of at most `max_bytes`, as `TensorFolder.iter_blocks`.

        Raises:
            BadInputError: no such tensor, or the base's file changed meanwhile.
            ValueError: `max_bytes` below 1.
        """
        if self.is_base(name):
            return self.base.iter_blocks(name, max_bytes)
        if (copied := self._copied(name)) is not None:
            return self.base.iter_blocks(copied, max_bytes)
        if max_bytes < 1:
            raise ValueError(f"blocks of {max_bytes} bytes: they need at least 1")
        data = self._data(name)
        return (data[start : start + max_bytes] for start in range(0, len(data), max_bytes))

    def _copied(self, name: str) -> str | None:
        """The base's tensor that a new one copies."""
        return self._new[name].copy_of if name in self._new else None

    def _data(self, name: str) -> memoryview:
        return self.read(name).reshape(-1).view(np.uint8).data
