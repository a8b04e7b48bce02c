"""Inputs and outputs of a graph as its file declares them: name, type, shape."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Protocol

from alignez_bake.errors import BadInputError
from alignez_bake.runtime.protobuf import fields, signed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

TYPE_NAMES: Final[Mapping[int, str]] = MappingProxyType(
    {
        number: f"tensor({name})"
        for number, name in enumerate(
            ("float", "uint8", "int8", "uint16", "int16", "int32", "int64", "string", "bool", "float16", "double",
             "uint32", "uint64", "complex64", "complex128", "bfloat16"),
            start=1,
        )
    }
)  # fmt: skip
"""ONNX Runtime's name of a tensor's type, by number of TensorProto.DataType; those of 8 bits and fewer are left out."""


class Described(Protocol):
    """An input or output, whoever read it: `Argument` here, others from onnx's own messages."""

    @property
    def name(self) -> str:
        """The value's."""

    @property
    def type(self) -> str:
        """ONNX Runtime's name of its type."""

    @property
    def shape(self) -> Sequence[int | str | None] | None:
        """One entry an axis: a number, a name, or None for neither; None as a whole: the number of axes is open."""


@dataclass(frozen=True)
class Argument:
    """An input or output of a graph; see `Described` for the attributes."""

    name: str
    type: str
    shape: tuple[int | str | None, ...] | None


def session_argument(argument: Any) -> Argument:  # noqa: ANN401 - ONNX Runtime has no stubs
    """An argument as a session says it: ONNX Runtime's `NodeArg`.

    It gives `[]` both for a scalar and for a shape that is open. No input or output of a causal model is a scalar.
    """
    return Argument(argument.name, argument.type, tuple(argument.shape) or None)


def file_argument(message: memoryview, place: str) -> Argument:
    """An argument as a file says it: a ValueInfoProto.

    Raises:
        BadInputError: bytes that are none.
    """
    name, kind, shape = "", "no tensor", None
    for number, value in fields(message, place):
        if number == 1:
            name = _text(value, place)
        elif number == 2:
            kind, shape = _type(_bytes(value, place), place)
    return Argument(name, kind, shape)


def _type(message: memoryview, place: str) -> tuple[str, tuple[int | str | None, ...] | None]:
    """Of a TypeProto: a tensor's type and shape; sequences, maps and the like are "no tensor"."""
    kind, shape = "no tensor", None
    for number, value in fields(message, place):
        if number != 1:
            continue
        kind = "tensor of no type"
        for inner, part in fields(_bytes(value, place), place):
            if inner == 1 and isinstance(part, int):
                kind = TYPE_NAMES.get(part, f"tensor of type number {part}")
            elif inner == 2:
                dimensions = fields(_bytes(part, place), place)
                shape = tuple(_axis(_bytes(axis, place), place) for field, axis in dimensions if field == 1)
    return kind, shape


def _axis(message: memoryview, place: str) -> int | str | None:
    size: int | str | None = None
    for number, value in fields(message, place):
        if number == 1 and isinstance(value, int):
            size = signed(value)
        elif number == 2:
            size = _text(value, place) or None
    return size


def _text(value: int | memoryview, place: str) -> str:
    return bytes(_bytes(value, place)).decode("utf-8", "replace")


def _bytes(value: int | memoryview, place: str) -> memoryview:
    if isinstance(value, int):
        raise BadInputError(f"{place} is not an ONNX model: a number where a message should be")
    return value
