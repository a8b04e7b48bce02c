"""What a `.onnx` file says about itself, read before ONNX Runtime sees it: opset, inputs, outputs, data elsewhere."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from alignez_bake.errors import BadInputError
from alignez_bake.runtime.escaping import shown
from alignez_bake.runtime.protobuf import fields, signed, varint
from alignez_bake.runtime.value_info import file_argument

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from alignez_bake.runtime.value_info import Argument

Message = Literal["model", "graph", "node", "attribute", "tensor", "sparse", "function", "training"]

CHILDREN: Final[Mapping[Message, Mapping[int, Message]]] = MappingProxyType(
    {
        "model": {7: "graph", 20: "training", 25: "function"},
        "training": {1: "graph", 2: "graph"},
        "graph": {1: "node", 5: "tensor", 15: "sparse"},
        "function": {7: "node", 11: "attribute"},
        "node": {5: "attribute"},
        "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
        "sparse": {1: "tensor", 2: "tensor"},
        "tensor": {},
    }
)
"""Where tensors can lie: for each message of onnx.proto the fields that lead to one."""

MIN_OPSET: Final = 14
"""The oldest opset that exporters of causal models with a cache write (torch's attention needs it)."""

_MAX_FILE_BYTES: Final = 2**31 - 1  # protobuf's own bound of one message
_MAX_DEPTH: Final = 100  # likewise
_EXTERNAL: Final = 1  # TensorProto.DataLocation
_DEFAULT_DOMAINS: Final = frozenset({"", "ai.onnx"})


@dataclass(frozen=True)
class ExternalTensor:
    """A tensor whose values lie in another file; nothing of it is checked.

    Attributes:
        name: the tensor's; may be empty.
        data_type: number of TensorProto.DataType.
        shape: as stored, so that entries may be negative.
        entries: the key-value pairs that say where, in the order of the file.
    """

    name: str
    data_type: int
    shape: tuple[int, ...]
    entries: tuple[tuple[str, str], ...]


class _Tensor(NamedTuple):
    """Any tensor: what it says, and whether its values lie elsewhere."""

    told: ExternalTensor
    external: bool


@dataclass(frozen=True)
class GraphFile:
    """A `.onnx` file.

    Attributes:
        path: the file.
        opset: version of ONNX's own operators, at least `MIN_OPSET`.
        inputs: what a caller gives, in order: initialisers that are listed among the inputs are left out.
        outputs: what the graph gives, in order.
        data_types: numbers of TensorProto.DataType of all tensors that lie in it or beside it.
        external: every tensor with data elsewhere: initialisers, attributes, those of subgraphs and functions.
    """

    path: Path
    opset: int
    inputs: tuple[Argument, ...]
    outputs: tuple[Argument, ...]
    data_types: frozenset[int]
    external: tuple[ExternalTensor, ...]


def read_graph_file(path: Path) -> GraphFile:
    """Walk the file; weights inside it are not read.

    Raises:
        BadInputError: not there, unreadable, too large for protobuf, cut short, no ONNX model, or an old opset.
    """
    message = memoryview(_mapped(path))
    opsets = [_opset(value, path) for number, value in fields(message, str(path)) if number == 8]
    versions = [version for domain, version in opsets if domain in _DEFAULT_DOMAINS]
    if not versions or not any(number == 7 for number, _ in fields(message, str(path))):
        raise BadInputError(f"{path} is cut short or no ONNX model: it has no graph or names no opset; copy it again")
    if min(versions) < MIN_OPSET:
        raise BadInputError(
            f"{path} has opset {min(versions)}, and {MIN_OPSET} is the least: export the model again with a newer one"
        )
    found: list[_Tensor] = []
    _collect(message, "model", path, found, 0)
    inputs, outputs = _arguments(message, path)
    return GraphFile(
        path,
        max(versions),
        inputs,
        outputs,
        frozenset(tensor.told.data_type for tensor in found),
        tuple(tensor.told for tensor in found if tensor.external),
    )


def _mapped(path: Path) -> mmap.mmap:
    """The file's bytes, read when they are looked at; unmapped with the last view."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size > _MAX_FILE_BYTES:
                raise BadInputError(
                    f"{path} has {size} bytes, and one ONNX file holds at most {_MAX_FILE_BYTES}: "
                    "export the model with external data"
                )
            if size == 0:
                raise BadInputError(f"{path} is empty: copy it again")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read ({error.strerror or error})") from error


def _opset(value: int | memoryview, path: Path) -> tuple[str, int]:
    """Domain and version of an OperatorSetIdProto."""
    domain, version = "", 0
    for number, part in fields(_message(value, path), str(path)):
        if number == 1:
            domain = _text(part, path)
        elif number == 2 and isinstance(part, int):
            version = part
    return domain, version


def _arguments(model: memoryview, path: Path) -> tuple[tuple[Argument, ...], tuple[Argument, ...]]:
    """Inputs and outputs of the main graph; of one in pieces, which protobuf allows, those of all pieces."""
    place = str(path)
    graphs = [_message(value, path) for number, value in fields(model, place) if number == 7]
    parts = [part for graph in graphs for part in fields(graph, place)]
    inputs = [file_argument(_message(value, path), place) for number, value in parts if number == 11]
    outputs = [file_argument(_message(value, path), place) for number, value in parts if number == 12]
    given = {_tensor(_message(value, path), path).told.name for number, value in parts if number == 5}
    for values in (value for number, value in parts if number == 15):  # sparse: named by the tensor of its values
        for number, value in fields(_message(values, path), place):
            if number == 1:
                given.add(_tensor(_message(value, path), path).told.name)
    return tuple(argument for argument in inputs if argument.name not in given), tuple(outputs)


def _collect(message: memoryview, kind: Message, path: Path, found: list[_Tensor], depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise BadInputError(f"{path}: graphs lie in each other more than {_MAX_DEPTH} deep, which nothing can run")
    if kind == "tensor":
        found.append(_tensor(message, path))
        return
    children = CHILDREN[kind]
    for number, value in fields(message, str(path)):
        if number in children:
            _collect(_message(value, path), children[number], path, found, depth + 1)


def _tensor(message: memoryview, path: Path) -> _Tensor:
    """Of a TensorProto all but its values. One that says half of it counts as external."""
    name, data_type, elsewhere = "", 0, False
    shape: list[int] = []
    entries: list[tuple[str, str]] = []
    for number, value in fields(message, str(path)):
        match number, value:
            case 1, int():
                shape.append(signed(value))
            case 1, memoryview():  # packed
                at = 0
                while at < len(value):
                    size, at = varint(value, at, str(path))
                    shape.append(signed(size))
            case 2, int():
                data_type = value
            case 8, memoryview():
                name = bytes(value).decode("utf-8", "replace")
            case 13, memoryview():
                entries.append(_entry(value, path))
            case 14, int():
                elsewhere = value == _EXTERNAL
            case _:
                pass
    return _Tensor(ExternalTensor(name, data_type, tuple(shape), tuple(entries)), elsewhere or bool(entries))


def _entry(message: memoryview, path: Path) -> tuple[str, str]:
    """Key and value of a StringStringEntryProto."""
    pair = {1: "", 2: ""}
    for number, part in fields(message, str(path)):
        if number in pair:
            pair[number] = _text(part, path)
    return pair[1], pair[2]


def _message(value: int | memoryview, path: Path) -> memoryview:
    if isinstance(value, int):
        raise BadInputError(f"{path} is not an ONNX model: a number where a message should be")
    return value


def _text(value: int | memoryview, path: Path) -> str:
    try:
        return bytes(_message(value, path)).decode()
    except UnicodeDecodeError:
        raise BadInputError(f"{path} is not an ONNX model: {shown(value)} is not UTF-8") from None
