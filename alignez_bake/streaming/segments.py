"""What a weight file is made of: one segment a tensor, any part of which can be made by itself.

Whoever makes a part reads what it needs of the base for itself, so any number of them may be made side by side.
"""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from alignez_bake.errors import BadInputError
from alignez_bake.safetensors_io.dtypes import BY_NAME, Array, cast_once, numpy_dtype_of
from alignez_bake.safetensors_io.file_access import open_data, read_into
from alignez_bake.safetensors_io.finite import all_finite, not_finite
from alignez_bake.safetensors_io.strict_json import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from alignez_bake.lowering.delivery import DeliverySums
    from alignez_bake.lowering.rounding import Rounding
    from alignez_bake.safetensors_io.header import Header, TensorEntry


class Made(NamedTuple):
    """What is known of a part of a tensor that was made.

    Attributes:
        sums: how much of the edit it holds, of the rows that begin in it; None where there is no edit.
        rounding: of an edit.
    """

    sums: DeliverySums | None = None
    rounding: Rounding = "nearest"


class Preparation(Protocol):
    """What parts of a tensor wait for."""

    def prepare(self) -> None:
        """Make it, once; an error is raised where it is waited for."""
        ...


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
        """The bytes [begin, end) of the base's data that it is made of; None: there are none."""
        ...

    @property
    def noted(self) -> bool:
        """Whether it is edited or new, so that it has a hash of its own."""
        ...

    def preparations(self, begin: int, end: int) -> range:
        """Numbers of the preparations that its bytes [begin, end) need."""
        ...

    def preparation(self, number: int) -> Preparation:
        """A new one, for `fill`."""
        ...

    def fill(self, begin: int, end: int, out: Array, base: Array | None, prepared: Mapping[int, Preparation]) -> Made:
        """Make its bytes [begin, end).

        Args:
            begin: first byte of the tensor; any, also within a value.
            end: behind the last one.
            out: where they go [end - begin], bytes.
            base: the same bytes of the base's file, which may be `out` itself; only where it has this tensor at the
                same place in the same dtype. None: what is needed is read.
            prepared: what the bytes need; it may still be in the making.

        Raises:
            BadInputError: values that are not finite, an overflow, or a base that changed.
        """
        ...


@dataclass(frozen=True)
class _BaseTensor:
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

    def preparations(self, begin: int, end: int) -> range:
        """None."""
        del begin, end
        return range(0)

    def preparation(self, number: int) -> Preparation:
        """There is none."""
        raise IndexError(number)


@dataclass(frozen=True)
class CopiedTensor(_BaseTensor):
    """A tensor of the base, byte for byte."""

    @property
    def dtype(self) -> str:
        """The stored dtype."""
        return self.entry.dtype

    def fill(self, begin: int, end: int, out: Array, base: Array | None, prepared: Mapping[int, Preparation]) -> Made:
        """As `Segment`."""
        del prepared
        if base is None:
            read_bytes(self.header, self.entry.begin + begin, out)
        elif base is not out:
            out[:] = base
        self._check(begin, end, out)
        return Made()

    def _check(self, begin: int, end: int, data: Array) -> None:
        """Look at all values that have a byte here."""
        if not BY_NAME[self.entry.dtype].is_plain_float:
            return
        width = BY_NAME[self.entry.dtype].bits // 8
        first, last = begin // width * width, -(-end // width) * width
        if (first, last) != (begin, end):
            data = np.empty(last - first, np.uint8)
            read_bytes(self.header, self.entry.begin + first, data)
        check_finite(self.header, self.entry, data)


@dataclass(frozen=True)
class CastTensor(_BaseTensor):
    """A float tensor of the base in another dtype; it is F64, F32, F16 or BF16.

    Attributes:
        dtype: the file's spelling of the new dtype.
    """

    dtype: str

    def fill(self, begin: int, end: int, out: Array, base: Array | None, prepared: Mapping[int, Preparation]) -> Made:
        """As `Segment`."""
        del base, prepared
        old, new = BY_NAME[self.entry.dtype].bits // 8, BY_NAME[self.dtype].bits // 8
        first, last = begin // new, -(-end // new)
        data = np.empty((last - first) * old, np.uint8)
        read_bytes(self.header, self.entry.begin + first * old, data)
        check_finite(self.header, self.entry, data)
        out[:] = self._cast(data)[begin - first * new : end - first * new]
        return Made()

    def _cast(self, data: Array) -> Array:
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

    def preparations(self, begin: int, end: int) -> range:
        """One: all its values."""
        del begin, end
        return range(1)

    def preparation(self, number: int) -> Preparation:
        """All its values."""
        del number
        return _Values(self)

    def fill(self, begin: int, end: int, out: Array, base: Array | None, prepared: Mapping[int, Preparation]) -> Made:
        """As `Segment`."""
        del base
        values = prepared[0]
        assert isinstance(values, _Values)
        out[:] = values.made.result()[begin:end]
        return Made()


@dataclass(frozen=True)
class _Values:
    """The bytes of a new tensor."""

    tensor: NewTensor
    made: Future[Array] = field(default_factory=Future)

    def prepare(self) -> None:
        """As `Preparation`."""
        try:
            self.made.set_result(self._bytes())
        except BaseException as error:  # noqa: BLE001  # raised where it is waited for
            self.made.set_exception(error)

    def _bytes(self) -> Array:
        values = np.ascontiguousarray(self.tensor.values())
        if values.shape != self.tensor.shape:
            raise ValueError(f"values of {shown(self.tensor.name)} have shape {values.shape}, not {self.tensor.shape}")
        return cast_once(values, numpy_dtype_of(self.tensor.dtype)).reshape(-1).view(np.uint8)


def read_bytes(header: Header, begin: int, out: Array) -> None:
    """Fill an array of bytes from byte `begin` of a file's data; the header lies at negative places.

    Raises:
        BadInputError: the file changed after its header was read.
    """
    with open_data(header) as file:
        read_into(file, header, begin, out.data)


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
