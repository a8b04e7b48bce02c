"""The layers a user names: `4-20`, `3`, or `0,2-5`; and how many of them to edit: `3` or `auto`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from alignez_bake.errors import BadInputError

if TYPE_CHECKING:
    from alignez_bake.methods.protocol import TopLayers

_PART = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")
_COUNT = re.compile(r"[0-9]{1,9}")


def parse_layers(text: str, num_layers: int) -> tuple[int, ...]:
    """Layers in ascending order, without repetition.

    Args:
        text: numbers and ranges separated by commas; layers count from 0, both ends of a range are included.
        num_layers: number of decoder layers of the model.

    Raises:
        BadInputError: not of that form, a range that runs backwards, or a layer that the model lacks.
    """
    legal = f"use layers within 0-{num_layers - 1}, such as 0-{num_layers - 1} or {num_layers - 1}"
    layers: set[int] = set()
    for part in text.split(","):
        match = _PART.fullmatch(part.strip())
        if match is None:
            raise BadInputError(f"layers {text!r}: {part.strip()!r} is neither a number nor a range; {legal}")
        first = int(match[1])
        last = first if match[2] is None else int(match[2])
        if last < first:
            raise BadInputError(f"layers {text!r}: the range {part.strip()!r} runs backwards; {legal}")
        if last >= num_layers:
            raise BadInputError(f"layers {text!r}: the model has no layer {last}; {legal}")
        layers.update(range(first, last + 1))
    return tuple(sorted(layers))


def parse_top_layers(asked: int | str | None) -> TopLayers | None:
    """How many layers to edit, from a number, its digits, or `auto`.

    Raises:
        BadInputError: anything else.
    """
    if asked is None or isinstance(asked, int):
        return asked
    if asked == "auto":
        return "auto"
    if _COUNT.fullmatch(asked) is None:
        raise BadInputError(f"top layers {asked!r} is neither a number of layers nor auto")
    return int(asked)
