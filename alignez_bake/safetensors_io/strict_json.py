"""JSON from files that are not trusted: UTF-8, one object, no repeated key, no NaN, not nested deeply."""

from __future__ import annotations

import json
import math
from functools import partial
from typing import Final, NoReturn

from alignez_bake.errors import BadInputError

# Nothing that we read needs a tenth of it. The parser's own limit is the room that is left on the stack: a value that
# just passed it would end whatever walks it later, a message or a writer of JSON.
MAX_DEPTH: Final = 100
_SHOWN = 120


def shown(value: object) -> str:
    """A value from a file, fit for a one-line message: escaped and cut to 120 characters."""
    text = ascii(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(text)} characters)"


def parse_object(data: bytes, place: str) -> dict[str, object]:
    """Parse one JSON object.

    Args:
        data: the bytes.
        place: what they are, for messages, such as "header of model.safetensors".

    Returns:
        The object, keys in the order of the text.

    Raises:
        BadInputError: not UTF-8, not JSON, nested deeper than `MAX_DEPTH`, a key given twice in one object, NaN,
            Infinity or a number beyond all floats, a string that is half of a surrogate pair, or not an object.
    """

    def pairs(items: list[tuple[str, object]]) -> dict[str, object]:
        result = dict(items)
        if len(result) != len(items):
            seen: set[str] = set()
            for key, _ in items:
                if key in seen:
                    raise BadInputError(
                        f"{place}: key {shown(key)} is given twice, so its meaning is ambiguous: write the file anew"
                    )
                seen.add(key)
        return result

    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=pairs,
            parse_constant=partial(_refuse_constant, place),
            parse_float=partial(_finite_number, place),
        )
        check_depth(value, place)
        # An escape such as \ud800 passes the parser, but is no text: it can be neither printed nor written.
        if b"\\u" in data:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except BadInputError:
        raise
    except RecursionError as error:
        raise _too_deep(place) from error
    except ValueError as error:  # JSONDecodeError, UnicodeError, integers of thousands of digits
        raise BadInputError(f"{place} is not valid JSON ({shown(str(error))}): download or write it again") from error
    if not isinstance(value, dict):
        raise BadInputError(f"{place} is a JSON {type(value).__name__}: it must be an object")
    return value


def check_depth(value: object, place: str) -> None:
    """Refuse a parsed JSON value whose arrays and objects lie in each other more than `MAX_DEPTH` deep.

    Raises:
        BadInputError: it is nested deeper.
    """
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            inner
            for node in level
            if isinstance(node, dict | list)
            for inner in (node.values() if isinstance(node, dict) else node)
        ]
        if not level:
            return
    raise _too_deep(place)


def _refuse_constant(place: str, text: str) -> NoReturn:
    raise BadInputError(f"{place}: {text} is not JSON: numbers must be finite")


def _finite_number(place: str, text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise BadInputError(f"{place}: {shown(text)} is beyond all floats: numbers must be finite")
    return value


def _too_deep(place: str) -> BadInputError:
    return BadInputError(
        f"{place}: the JSON is nested too deeply, beyond {MAX_DEPTH} levels: the file is damaged or hostile"
    )
