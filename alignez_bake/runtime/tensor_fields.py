"""A TensorProto, walked in the file's own bytes: nothing is copied but numbers and the words of where its data lie."""

from __future__ import annotations

from typing import Final, NamedTuple

from alignez_bake.runtime.field_values import entry, submessage
from alignez_bake.runtime.protobuf import fields, signed, varint

_EXTERNAL: Final = 1  # TensorProto.DataLocation


class TensorFields(NamedTuple):
    """What a tensor says, unchecked.

    The views keep the file mapped: whoever keeps more than a moment of a walk takes out of them what he needs.

    Attributes:
        name: in bytes that should be UTF-8; may be empty.
        data_type: number of TensorProto.DataType.
        shape: as stored, so that entries may be negative.
        raw: its values, where they lie in `raw_data`.
        entries: the key-value pairs that say where they lie otherwise, in the order of the file.
        external: whether they lie elsewhere; one that says half of it counts as such.
        metadata: messages, each of one key and its value.
    """

    name: memoryview
    data_type: int
    shape: tuple[int, ...]
    raw: memoryview | None
    entries: tuple[tuple[str, str], ...]
    external: bool
    metadata: tuple[memoryview, ...]


def tensor_fields(message: memoryview, place: str) -> TensorFields:
    """Read a TensorProto.

    Args:
        message: its bytes.
        place: the file, for messages.

    Raises:
        BadInputError: bytes that are none.
    """
    name, data_type, raw, elsewhere = memoryview(b""), 0, None, False
    shape: list[int] = []
    entries: list[tuple[str, str]] = []
    metadata: list[memoryview] = []
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
                data_type = value
            case 8, _:
                name = submessage(value, place)
            case 9, memoryview():
                raw = value
            case 13, _:
                entries.append(entry(value, place))
            case 14, int():
                elsewhere = value == _EXTERNAL
            case 16, _:
                metadata.append(submessage(value, place))
            case _:
                pass
    return TensorFields(name, data_type, tuple(shape), raw, tuple(entries), elsewhere or bool(entries), tuple(metadata))
