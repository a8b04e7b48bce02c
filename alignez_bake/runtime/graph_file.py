"""What a `.onnx` file says about itself, read before ONNX Runtime sees it: opset, inputs, outputs, data elsewhere."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal

from alignez_bake.errors import BadInputError
from alignez_bake.runtime.field_values import submessage, text
from alignez_bake.runtime.protobuf import fields
from alignez_bake.runtime.tensor_fields import TensorFields, tensor_fields
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
    found: list[TensorFields] = []
    _collect(message, "model", path, found, 0)
    inputs, outputs = _arguments(message, path)
    return GraphFile(
        path,
        max(versions),
        inputs,
        outputs,
        frozenset(tensor.data_type for tensor in found),
        tuple(
            ExternalTensor(_name(tensor), tensor.data_type, tensor.shape, tensor.entries)
            for tensor in found
            if tensor.external
        ),
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
    for number, part in fields(submessage(value, str(path)), str(path)):
        if number == 1:
            domain = text(part, str(path))
        elif number == 2 and isinstance(part, int):
            version = part
    return domain, version


def _arguments(model: memoryview, path: Path) -> tuple[tuple[Argument, ...], tuple[Argument, ...]]:
    """Inputs and outputs of the main graph; of one in pieces, which protobuf allows, those of all pieces."""
    place = str(path)
    graphs = [submessage(value, place) for number, value in fields(model, place) if number == 7]
    parts = [part for graph in graphs for part in fields(graph, place)]
    inputs = [file_argument(submessage(value, place), place) for number, value in parts if number == 11]
    outputs = [file_argument(submessage(value, place), place) for number, value in parts if number == 12]
    given = {_name(tensor_fields(submessage(value, place), place)) for number, value in parts if number == 5}
    for values in (value for number, value in parts if number == 15):  # sparse: named by the tensor of its values
        for number, value in fields(submessage(values, place), place):
            if number == 1:
                given.add(_name(tensor_fields(submessage(value, place), place)))
    return tuple(argument for argument in inputs if argument.name not in given), tuple(outputs)


def _collect(message: memoryview, kind: Message, path: Path, found: list[TensorFields], depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise BadInputError(f"{path}: graphs lie in each other more than {_MAX_DEPTH} deep, which nothing can run")
    if kind == "tensor":
        found.append(tensor_fields(message, str(path)))
        return
    children = CHILDREN[kind]
    for number, value in fields(message, str(path)):
        if number in children:
            _collect(submessage(value, str(path)), children[number], path, found, depth + 1)


def _name(tensor: TensorFields) -> str:
    return bytes(tensor.name).decode("utf-8", "replace")
