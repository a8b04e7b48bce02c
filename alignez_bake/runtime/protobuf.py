"""Walks a protobuf message without its schema and without copies: what `onnx` would be needed for otherwise.

The runner has to see a graph's external data before ONNX Runtime opens them, and needs no package for it but
this. Wire format: https://protobuf.dev/programming-guides/encoding/. Nothing in the bytes is trusted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from alignez_bake.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Iterator

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_FIXED_BYTES: Final = {_FIXED64: 8, _FIXED32: 4}
_VARINT_BYTES: Final = 10  # of 64 bits, seven a byte


def fields(message: memoryview, place: str) -> Iterator[tuple[int, int | memoryview]]:
    """The fields of one message, in the order of the bytes.

    Args:
        message: its bytes.
        place: what they are, for messages.

    Yields:
        Number and value: an int of 0 to 2⁶⁴ - 1 for a varint, a view of the bytes for everything else. Which
        type a number stands for is the caller's to know.

    Raises:
        BadInputError: bytes that are no message, or end too early.
    """
    at, end = 0, len(message)
    while at < end:
        tag, at = varint(message, at, place)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, at = varint(message, at, place)
            yield number, value
            continue
        if wire == _LENGTH:
            size, at = varint(message, at, place)
        elif wire in _FIXED_BYTES:
            size = _FIXED_BYTES[wire]
        else:  # groups, which ONNX never had, and two that nothing has
            raise BadInputError(f"{place} is not an ONNX model: wire type {wire} at byte {at} of a message")
        if size > end - at:
            raise BadInputError(
                f"{place} is cut short or no ONNX model: a field of {size} bytes where {end - at} are left; "
                "copy it again"
            )
        yield number, message[at : at + size]
        at += size


def varint(message: memoryview, at: int, place: str) -> tuple[int, int]:
    """The varint that begins at byte `at`, and where the next thing begins.

    Raises:
        BadInputError: it does not end, or is longer than 64 bits.
    """
    value = 0
    for index in range(_VARINT_BYTES):
        if at + index >= len(message):
            raise BadInputError(f"{place} is cut short or no ONNX model: it ends within a number; copy it again")
        byte = message[at + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at + index + 1
    raise BadInputError(f"{place} is not an ONNX model: a number of more than 64 bits at byte {at} of a message")


def signed(value: int) -> int:
    """A varint read as int64."""
    return value - (1 << 64) if value >> 63 else value
