"""The parts of onnx.proto that tell of an initialiser, walked in the file's own bytes.

`onnx.load` reads weights that lie in the `.onnx` file into memory, twice; here nothing is copied but names and numbers.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from alignez_bake.errors import BadInputError
from alignez_bake.runtime.escaping import shown
from alignez_bake.runtime.protobuf import fields, signed, varint

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDED_FROM: Final = "pkg.onnxscript.optimizer.folded_from"
_LONGEST_ORIGINS: Final = 2**16  # characters; an initialiser is folded from a handful of names
_EXTERNAL: Final = 1  # TensorProto.DataLocation
_MESSAGE_OF: Final = {"model": 7, "node": 1, "initialiser": 5, "output": 12, "value": 13}


@dataclass
class TensorMessage:
    """A TensorProto, unchecked.

    Attributes:
        name: the tensor's.
        data_type: number of TensorProto.DataType.
        shape: as stored: sizes may be negative.
        raw: its bytes, where they lie in `raw_data`.
        external: where they lie otherwise: key and value.
        is_external: whether it says that they lie elsewhere.
        metadata: key and value.
        whole: the message itself.
    """

    whole: memoryview
    name: str = ""
    data_type: int = 0
    shape: tuple[int, ...] = ()
    raw: memoryview | None = None
    external: dict[str, str] = field(default_factory=dict)
    is_external: bool = False
    metadata: dict[str, str] = field(default_factory=dict)


def graphs(model: memoryview, place: str) -> Iterator[memoryview]:
    """The main graph of a ModelProto: one message, unless the file repeats it, which protobuf reads as one."""
    return _of(model, _MESSAGE_OF["model"], place)


def nodes(graph: memoryview, place: str) -> Iterator[memoryview]:
    """The NodeProtos of a GraphProto, in order; not those of its subgraphs."""
    return _of(graph, _MESSAGE_OF["node"], place)


def outputs(graph: memoryview, place: str) -> Iterator[str]:
    """Names of what a GraphProto gives out."""
    for message in _of(graph, _MESSAGE_OF["output"], place):
        yield from (text(value, place) for number, value in fields(message, place) if number == 1)


def tensors(graph: memoryview, place: str) -> Iterator[TensorMessage]:
    """The initialisers of a GraphProto, in order; not those of its subgraphs."""
    for message in _of(graph, _MESSAGE_OF["initialiser"], place):
        yield _tensor(message, place)


def value_metadata(graph: memoryview, place: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Name and metadata of each ValueInfoProto of a graph that has any: an initialiser's origin is noted there."""
    for message in _of(graph, _MESSAGE_OF["value"], place):
        name, metadata = "", {}
        for number, value in fields(message, place):
            if number == 1:
                name = text(value, place)
            elif number == 4:
                key, entry = _entry(value, place)
                metadata[key] = entry
        if metadata:
            yield name, metadata


def origins(metadata: dict[str, str], place: str) -> tuple[str, ...]:
    """Names of the values that the optimiser folded into this one; none where it did not.

    Raises:
        BadInputError: the entry is no list of names.
    """
    told = metadata.get(FOLDED_FROM)
    if told is None:
        return ()
    try:
        names = ast.literal_eval(told) if len(told) <= _LONGEST_ORIGINS else None
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BadInputError(f"{place}: {FOLDED_FROM} is {shown(told)}, no list of names: export the model again")
    return tuple(names)


def text(value: int | memoryview, place: str) -> str:
    """A string of a message.

    Raises:
        BadInputError: a number, or no UTF-8.
    """
    try:
        return bytes(_bytes(value, place)).decode()
    except UnicodeDecodeError:
        raise BadInputError(f"{place} is not an ONNX model: {shown(value)} is not UTF-8") from None


def _of(message: memoryview, wanted: int, place: str) -> Iterator[memoryview]:
    return (_bytes(value, place) for number, value in fields(message, place) if number == wanted)


def _tensor(message: memoryview, place: str) -> TensorMessage:
    tensor, shape = TensorMessage(message), []
    for number, value in fields(message, place):
        match number, value:
            case 1, int():
                shape.append(signed(value))
            case 1, memoryview():  # packed
                at = 0
                while at < len(value):
                    size, at = varint(value, at, place)
                    shape.append(signed(size))
            case 2, int():
                tensor.data_type = value
            case 8, _:
                tensor.name = text(value, place)
            case 9, memoryview():
                tensor.raw = value
            case 13, _:
                key, entry = _entry(value, place)
                tensor.external[key] = entry
            case 14, int():
                tensor.is_external = value == _EXTERNAL
            case 16, _:
                key, entry = _entry(value, place)
                tensor.metadata[key] = entry
            case _:
                pass
    tensor.shape = tuple(shape)
    return tensor


def _entry(message: int | memoryview, place: str) -> tuple[str, str]:
    """Key and value of a StringStringEntryProto."""
    pair = {1: "", 2: ""}
    for number, value in fields(_bytes(message, place), place):
        if number in pair:
            pair[number] = text(value, place)
    return pair[1], pair[2]


def _bytes(value: int | memoryview, place: str) -> memoryview:
    if isinstance(value, int):
        raise BadInputError(f"{place} is not an ONNX model: a number where a message should be")
    return value
