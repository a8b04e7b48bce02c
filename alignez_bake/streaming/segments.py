"""What a weight file is made of: one segment a tensor, each a row of jobs that give its bytes block by block.

A job reads what it needs of the base for itself, so any number of them may run side by side.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from alignez_bake.errors import BadInputError
from alignez_bake.safetensors_io.dtypes import BY_NAME, Array, cast_once, numpy_dtype_of
from alignez_bake.safetensors_io.file_access import open_data, read_into
from alignez_bake.safetensors_io.finite import all_finite, not_finite
from alignez_bake.safetensors_io.strict_json import shown
from alignez_bake.streaming.staging import empty_at

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from alignez_bake.lowering.delivery import DeliverySums
    from alignez_bake.lowering.rounding import Rounding
    from alignez_bake.safetensors_io.header import Header, TensorEntry

_COPY_BYTES = 4 * 1024 * 1024


class Block(NamedTuple):
    """A part of a file that is ready.

    Attributes:
        base: the bytes of the base's file that passed, in its order; None where none did, or not in order.
        written: the bytes of the result.
        sums: how much of the edit they hold; None where there is no edit.
        rounding: of an edit.
    """

    base: Array | None
    written: Array
    sums: DeliverySums | None = None
    rounding: Rounding = "nearest"


class Stretch(NamedTuple):
    """A part of a tensor whose blocks need the same preparation.

    Attributes:
        blocks: jobs that give its bytes, in order.
        prepare: what the blocks wait for, and what may run while an earlier stretch is written; None: nothing.
    """

    blocks: Iterator[Callable[[], Block]]
    prepare: Callable[[], None] | None = None


class Segment(Protocol):
    """One tensor of a file that is written."""

    @property
    def name(self) -> str:
        """Its key."""
        ...

    @property
    def dtype(self) -> str:
        """The file's spelling."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Its dimensions."""
        ...

    @property
    def source(self) -> tuple[int, int] | None:
        """The bytes [begin, end) of the base's data that pass through it, in order; None: none do."""
        ...

    @property
    def noted(self) -> bool:
        """Whether it is edited or new, so that it has a hash of its own."""
        ...

    def stretches(self) -> Iterator[Stretch]:
        """All of it, in order."""
        ...


@dataclass(frozen=True)
class _BaseTensor(ABC):
    """A tensor of the base without an edit; its values are looked at as they pass.

    Attributes:
        header: of the base's file.
        entry: of the tensor.
    """

    header: Header
    entry: TensorEntry
    noted: bool = field(default=False, init=False)

    @property
    def name(self) -> str:
        """Its key."""
        return self.entry.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Its dimensions."""
        return self.entry.shape

    @property
    def source(self) -> tuple[int, int]:
        """All of it."""
        return self.entry.begin, self.entry.end

    def stretches(self) -> Iterator[Stretch]:
        """As `Segment`."""
        yield Stretch(self._blocks())

    def _blocks(self) -> Iterator[Callable[[], Block]]:
        width, begin = max(1, BY_NAME[self.entry.dtype].bits // 8), self.entry.begin
        while begin < self.entry.end:
            # Whole values, up to a boundary of the file, so that blocks can be written as they are.
            behind = (self.header.data_offset + begin) % _COPY_BYTES
            end = min(begin + _COPY_BYTES - behind // width * width, self.entry.end)
            yield partial(self._block, begin, end)
            begin = end

    def _block(self, begin: int, end: int) -> Block:
        data = read_range(self.header, begin, end)
        check_finite(self.header, self.entry, data)
        return Block(data, self._written(data))

    @abstractmethod
    def _written(self, data: Array) -> Array:
        """The bytes of the result for whole values of the base, as bytes."""


@dataclass(frozen=True)
class CopiedTensor(_BaseTensor):
    """A tensor of the base, byte for byte."""

    @property
    def dtype(self) -> str:
        """The stored dtype."""
        return self.entry.dtype

    def _written(self, data: Array) -> Array:
        return data


@dataclass(frozen=True)
class CastTensor(_BaseTensor):
    """A float tensor of the base in another dtype; it is F64, F32, F16 or BF16.

    Attributes:
        dtype: the file's spelling of the new dtype.
    """

    dtype: str

    def _written(self, data: Array) -> Array:
        values = data.view(numpy_dtype_of(self.entry.dtype))
        result = cast_once(values, numpy_dtype_of(self.dtype))
        if not all_finite(result) and not _is_mask(self.entry, data):
            raise BadInputError(
                f"{self.header.path}: tensor {shown(self.name)} holds {values[np.abs(values).argmax()]}, which "
                f"overflows {self.dtype}: use a wider dtype, such as BF16 or F32"
            )
        return result.view(np.uint8)


@dataclass(frozen=True)
class NewTensor:
    """A tensor that the base lacks, or holds in another shape.

    Attributes:
        name: its key.
        dtype: the file's spelling.
        shape: its dimensions.
        values: gives them, in any plain float dtype; they are rounded once.
        noted: whether it is the edits' own.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    values: Callable[[], Array]
    noted: bool = True
    source: None = None

    def stretches(self) -> Iterator[Stretch]:
        """As `Segment`: all of it at once."""
        yield Stretch(iter([self._block]))

    def _block(self) -> Block:
        values = np.ascontiguousarray(self.values())
        if values.shape != self.shape:
            raise ValueError(f"values of {shown(self.name)} have shape {values.shape}, not {self.shape}")
        result = cast_once(values, numpy_dtype_of(self.dtype))
        return Block(None, result.reshape(-1).view(np.uint8))


def read_range(header: Header, begin: int, end: int) -> Array:
    """Bytes [begin, end) of a file's data, in memory that lies as they do in the file.

    Raises:
        BadInputError: the file changed after its header was read.
    """
    data = empty_at(end - begin, header.data_offset + begin)
    with open_data(header) as file:
        read_into(file, header, begin, data.data)
    return data


def check_finite(header: Header, entry: TensorEntry, data: Array) -> None:
    """Refuse NaN and infinity in a tensor of F64, F32, F16 or BF16.

    Args:
        header: of its file.
        entry: of the tensor.
        data: whole values of it, as bytes.

    Raises:
        BadInputError: the message names tensor and file.
    """
    if not BY_NAME[entry.dtype].is_plain_float or all_finite(data.view(numpy_dtype_of(entry.dtype))):
        return
    if _is_mask(entry, data):
        return
    raise not_finite(entry.name, header.path)


def _is_mask(entry: TensorEntry, data: Array) -> bool:
    """Whether it is the fill value of a mask: pythia's masked_bias, -1e9, is -inf in F16."""
    values: Any = data.view(numpy_dtype_of(entry.dtype))
    return values.size == 1 and entry.nbytes == data.nbytes and bool(np.isneginf(values.astype(np.float64)).all())
