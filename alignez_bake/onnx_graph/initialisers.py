"""The initialisers of a graph on disk, one at a time, as arrays that lie in the file."""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from alignez_bake.errors import BadInputError
from alignez_bake.onnx_graph.data_types import NUMPY_DTYPES
from alignez_bake.onnx_graph.messages import graphs, origins, tensors, value_metadata
from alignez_bake.runtime.escaping import shown
from alignez_bake.runtime.external_data import BITS, check_external_data
from alignez_bake.runtime.graph_file import read_graph_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from alignez_bake.onnx_graph.messages import TensorMessage


@dataclass(frozen=True)
class Initialiser:
    """What a graph says of one initialiser.

    Attributes:
        name: its name.
        data_type: number of TensorProto.DataType.
        dtype: of the array that `read` gives; None where there is none: strings, and values packed below one byte.
        shape: its dimensions.
        folded_from: names of the values, parameters among them, that the optimiser made it of; empty where the
            graph says nothing of it.
        file: the file beside the graph that holds its values; None where the graph's own does.
        offset: where they begin in `file`, in bytes; None likewise.
    """

    name: str
    data_type: int
    dtype: np.dtype[Any] | None
    shape: tuple[int, ...]
    folded_from: tuple[str, ...]
    file: Path | None
    offset: int | None

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


class GraphTensors:
    """The initialisers of one graph; made by `open_graph`.

    The files are mapped, so values are read from the disk as they are looked at, and a file must not be cut while it
    is open here.

    Attributes:
        path: the `.onnx` file.
        opset: version of ONNX's own operators.
        message: the file's bytes.
        names: of the initialisers of the main graph, in its order; those of subgraphs are not among them.
    """

    def __init__(self, path: Path, opset: int, message: memoryview) -> None:
        """Take a file whose external data are checked."""
        self.path, self.opset, self.message = path, opset, message
        self._files: dict[Path, memoryview] = {}
        self._entries: dict[str, Initialiser] = {}
        self._inside: dict[str, TensorMessage] = {}
        place = str(path)
        for graph in graphs(message, place):
            metadata = dict(value_metadata(graph, place))
            for tensor in tensors(graph, place):
                if tensor.name in self._entries:
                    raise BadInputError(f"{path} has two initialisers {shown(tensor.name)}: export the model again")
                told = {**tensor.metadata, **metadata.get(tensor.name, {})}
                origin = origins(told, f"{path}: initialiser {shown(tensor.name)}")
                self._entries[tensor.name] = self._entry(tensor, origin)
        self.names = tuple(self._entries)

    def __contains__(self, name: object) -> bool:
        """Whether there is an initialiser of this name."""
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        """Names, in the order of the graph."""
        return iter(self.names)

    def __len__(self) -> int:
        """Number of initialisers."""
        return len(self.names)

    def entry(self, name: str) -> Initialiser:
        """What the graph says of an initialiser.

        Raises:
            BadInputError: no initialiser of this name.
        """
        if name not in self._entries:
            raise BadInputError(f"{self.path} has no initialiser {shown(name)} among its {len(self.names)}")
        return self._entries[name]

    def read(self, name: str) -> NDArray[Any]:
        """The values, read-only and in the file: a page is in memory once it is looked at.

        Raises:
            BadInputError: no such initialiser, strings, values packed below one byte, or values that are damaged.
        """
        entry = self.entry(name)
        if entry.dtype is None:
            raise BadInputError(f"{self._place(name)} has data type number {entry.data_type}, which no array can hold")
        data = self._bytes(entry)
        return self._typed(entry) if data is None else np.frombuffer(data, entry.dtype).reshape(entry.shape)

    def read_bytes(self, name: str) -> memoryview:
        """The values as the bytes that they are in the file, packed ones too.

        Raises:
            BadInputError: no such initialiser, strings, or values that are damaged.
        """
        data = self._bytes(self.entry(name))
        return memoryview(self.read(name).tobytes()) if data is None else data

    def release(self) -> None:
        """Let go of the pages that were looked at: they count as memory of this process until others need the room.

        Arrays stay valid, and are read from the disk again where they are looked at again.
        """
        for view in (self.message, *self._files.values()):
            # Windows has no such call, and counts mapped pages otherwise.
            if isinstance(view.obj, mmap.mmap) and hasattr(view.obj, "madvise"):
                view.obj.madvise(mmap.MADV_DONTNEED)

    def _entry(self, tensor: TensorMessage, origin: tuple[str, ...]) -> Initialiser:
        file, offset = None, None
        if min(tensor.shape, default=0) < 0:
            raise BadInputError(
                f"{self._place(tensor.name)} has the shape {list(tensor.shape)}: no size is below 0; export again"
            )
        if tensor.is_external or tensor.external:
            file, offset = self.path.parent / tensor.external["location"], int(tensor.external.get("offset", "0"))
        else:
            self._inside[tensor.name] = tensor
            known = tensor.data_type in BITS
            if tensor.raw is not None and not (
                known and len(tensor.raw) == _bytes_needed(tensor.data_type, tensor.shape)
            ):
                raise BadInputError(
                    f"{self._place(tensor.name)} has {len(tensor.raw)} bytes, which are not what its shape "
                    f"{list(tensor.shape)} and data type number {tensor.data_type} need: export the model again"
                )
        dtype = NUMPY_DTYPES.get(tensor.data_type)
        return Initialiser(tensor.name, tensor.data_type, dtype, tensor.shape, origin, file, offset)

    def _bytes(self, entry: Initialiser) -> memoryview | None:
        """The values' bytes; None where they are written value by value, as small ones may be."""
        if entry.file is None or entry.offset is None:
            return self._inside[entry.name].raw
        if entry.file not in self._files:
            self._files[entry.file] = _mapped(entry.file)
        return self._files[entry.file][entry.offset : entry.offset + _bytes_needed(entry.data_type, entry.shape)]

    def _typed(self, entry: Initialiser) -> NDArray[Any]:
        """Values of one of TensorProto's typed lists: onnx knows which type lies in which, and how."""
        import onnx  # noqa: PLC0415 - comes with an extra, and few graphs have such values
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # noqa: PLC0415 - likewise
        from onnx import numpy_helper  # noqa: PLC0415 - likewise

        try:
            message = onnx.TensorProto.FromString(bytes(self._inside[entry.name].whole))
            values: NDArray[Any] = numpy_helper.to_array(message)
        except (DecodeError, ValueError, TypeError, OverflowError) as error:
            raise BadInputError(f"{self._place(entry.name)} is damaged ({error}): export the model again") from error
        if values.shape != entry.shape or values.dtype != entry.dtype:
            raise BadInputError(f"{self._place(entry.name)} holds other values than its shape and type say")
        return values

    def _place(self, name: str) -> str:
        return f"{self.path}: initialiser {shown(name)}"


def open_graph(path: Path) -> GraphTensors:
    """Open a graph for reading, after looking at every place outside of it that it names.

    Args:
        path: the `.onnx` file; its external data lie beside it.

    Raises:
        BadInputError: not there, unreadable, cut short, no ONNX model or one of an old opset; external data out of the
            folder, missing, too short, or of other sizes than the shapes need; two initialisers of one name; values
            that are not as many as the shape says.
    """
    checked = read_graph_file(path)
    check_external_data(checked)
    return GraphTensors(path, checked.opset, _mapped(path))


def _bytes_needed(data_type: int, shape: tuple[int, ...]) -> int:
    return -(-math.prod(shape) * BITS[data_type] // 8)


def _mapped(path: Path) -> memoryview:
    """A file's bytes; unmapped with the last array that looks into it."""
    try:
        with path.open("rb") as file:
            # An empty file cannot be mapped, and holds the values of empty tensors alone.
            if file.seek(0, 2) == 0:
                return memoryview(b"")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read ({error.strerror or error})") from error
