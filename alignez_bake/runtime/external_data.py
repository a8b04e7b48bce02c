"""Data beside a graph: there, whole, and inside the graph's own folder, or nothing is opened.

A graph names its data files itself, and it comes from strangers: `../../.ssh/id_rsa` is a location like any
other until somebody looks at it.
"""

from __future__ import annotations

import math
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from alignez_bake.errors import BadInputError
from alignez_bake.runtime.escaping import shown
from alignez_bake.runtime.inside import inside_folders

if TYPE_CHECKING:
    from collections.abc import Mapping

    from alignez_bake.runtime.graph_file import ExternalTensor, GraphFile

BITS: Final[Mapping[int, int]] = MappingProxyType(
    dict.fromkeys((25, 26), 2)
    | dict.fromkeys((21, 22, 23), 4)
    | dict.fromkeys((27, 28), 6)
    | dict.fromkeys((2, 3, 9, 17, 18, 19, 20, 24), 8)
    | dict.fromkeys((4, 5, 10, 16), 16)
    | dict.fromkeys((1, 6, 12), 32)
    | dict.fromkeys((7, 11, 13, 14), 64)
    | {15: 128}
)
"""Bits of one value, by number of TensorProto.DataType."""


def check_external_data(graph: GraphFile) -> None:
    """Look at every place that the graph names; nothing is read.

    A link may lead to the folder of the graph's own real file and nowhere else: that is how the hub's cache
    lies on the disk, where both are links into one folder of blobs.

    Raises:
        BadInputError: a path out of the folder, a file that is missing or too short, or sizes that disagree.
    """
    for tensor in graph.external:
        _check(graph.path, tensor)


def _check(model: Path, tensor: ExternalTensor) -> None:
    place = f"{model}: tensor {shown(tensor.name)}"
    told = dict(tensor.entries)
    if len(told) != len(tensor.entries):
        raise BadInputError(f"{place} says twice where its data lie: export the model again")
    file = _data_file(model, told.get("location", ""), place)
    offset = _bytes(told.get("offset", "0"), "offset", place)
    needed = _needed(tensor, place)
    length = _bytes(told["length"], "length", place) if "length" in told else needed
    if length != needed:
        raise BadInputError(
            f"{place} needs {needed} bytes for its shape {list(tensor.shape)}, and its entry says {length}: "
            "export the model again"
        )
    size = file.stat().st_size
    if offset + length > size:
        raise BadInputError(
            f"{place} lies in bytes {offset} to {offset + length} of {file}, which has {size}: copy that file again"
        )


def _data_file(model: Path, location: str, place: str) -> Path:
    """The data file, proved to lie where it may."""
    posix, windows = PurePosixPath(location), PureWindowsPath(location)
    # Both kinds everywhere: a graph that is refused on one system is refused on all.
    leaves = posix.is_absolute() or windows.drive or windows.root or ".." in posix.parts or ".." in windows.parts
    if not location or "\0" in location or leaves:
        raise BadInputError(
            f"{place} has its data in {shown(location)}, and only a file in the model's own folder is opened: "
            "put the data beside the graph and export it again"
        )
    path = model.parent / location
    return inside_folders(path, (model.parent.resolve(), model.resolve().parent), f"{place}: its data file {path}")


def _needed(tensor: ExternalTensor, place: str) -> int:
    """Bytes of the tensor's values, packed without gaps."""
    if tensor.data_type not in BITS:
        raise BadInputError(f"{place} has the data type number {tensor.data_type}, whose values cannot lie in a file")
    if min(tensor.shape, default=0) < 0:
        raise BadInputError(f"{place} has the shape {list(tensor.shape)}: no size is below 0")
    return -(-math.prod(tensor.shape) * BITS[tensor.data_type] // 8)


def _bytes(text: str, what: str, place: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 19):  # 2⁶³ has 19
        raise BadInputError(f"{place}: {what} {shown(text)} is not a number of bytes")
    return int(text)
