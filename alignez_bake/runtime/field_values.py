"""What the value of a message's field is read as, where onnx.proto says that it is no number."""

from __future__ import annotations

from alignez_bake.errors import BadInputError
from alignez_bake.runtime.escaping import shown
from alignez_bake.runtime.protobuf import fields


def submessage(value: int | memoryview, place: str) -> memoryview:
    """The bytes of a message or a string.

    Args:
        value: of the field.
        place: the file, for messages; likewise below.

    Raises:
        BadInputError: a number.
    """
    if isinstance(value, int):
        raise BadInputError(f"{place} is not an ONNX model: a number where a message should be")
    return value


def text(value: int | memoryview, place: str) -> str:
    """A string.

    Raises:
        BadInputError: a number, or no UTF-8.
    """
    try:
        return bytes(submessage(value, place)).decode()
    except UnicodeDecodeError:
        raise BadInputError(f"{place} is not an ONNX model: {shown(value)} is not UTF-8") from None


def entry(value: int | memoryview, place: str) -> tuple[str, str]:
    """Key and value of a StringStringEntryProto.

    Raises:
        BadInputError: a number, or no UTF-8.
    """
    pair = {1: "", 2: ""}
    for number, part in fields(submessage(value, place), place):
        if number in pair:
            pair[number] = text(part, place)
    return pair[1], pair[2]
