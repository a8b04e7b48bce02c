"""The parts of onnx.proto that tell of an initialiser, walked in the file's own bytes.

`onnx.load` reads weights that lie in the `.onnx` file into memory, twice; here nothing is copied but names and numbers.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from alignez_bake.errors import BadInputError
from alignez_bake.runtime.escaping import shown
from alignez_bake.runtime.field_values import entry, submessage
from alignez_bake.runtime.field_values import text as text  # noqa: PLC0414 - operands.py takes it from here
from alignez_bake.runtime.protobuf import fields
from alignez_bake.runtime.tensor_fields import tensor_fields

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDED_FROM: Final = "pkg.onnxscript.optimizer.folded_from"
_LONGEST_ORIGINS: Final = 2**16  # characters; an initialiser is folded from a handful of names
_MESSAGE_OF: Final = {"model": 7, "node": 1, "initialiser": 5, "output": 12, "value": 13}


@dataclass(frozen=True)
class TensorMessage:
    """A TensorProto, unchecked.

    Attributes:
        whole: the message itself.
        name: the tensor's.
        data_type: number of TensorProto.DataType.
        shape: as stored: sizes may be negative.
        raw: its bytes, where they lie in `raw_data`.
        external: where they lie otherwise: key and value.
        is_external: whether they lie elsewhere, as far as it says anything of it.
        metadata: key and value.
    """

    whole: memoryview
    name: str
    data_type: int
    shape: tuple[int, ...]
    raw: memoryview | None
    external: dict[str, str]
    is_external: bool
    metadata: dict[str, str]


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
                key, told = entry(value, place)
                metadata[key] = told
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


def _of(message: memoryview, wanted: int, place: str) -> Iterator[memoryview]:
    return (submessage(value, place) for number, value in fields(message, place) if number == wanted)


def _tensor(message: memoryview, place: str) -> TensorMessage:
    told = tensor_fields(message, place)
    return TensorMessage(
        message,
        text(told.name, place),
        told.data_type,
        told.shape,
        told.raw,
        dict(told.entries),
        told.external,
        dict(entry(value, place) for value in told.metadata),
    )
