"""JSON from files that are not trusted: UTF-8, one object, no repeated key, no NaN."""

from __future__ import annotations

import json
from typing import NoReturn

from alignez_bake.errors import BadInputError

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
        BadInputError: not UTF-8, not JSON, nested too deeply, a key given twice in one object, NaN or
            Infinity, a string that is half of a surrogate pair, or not an object.
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

    def constant(text: str) -> NoReturn:
        raise BadInputError(f"{place}: {text} is not JSON: numbers must be finite")

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=pairs, parse_constant=constant)
        # An escape such as \ud800 passes the parser, but is no text: it can be neither printed nor written.
        if b"\\u" in data:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except BadInputError:
        raise
    except RecursionError as error:
        raise BadInputError(f"{place}: the JSON is nested too deeply: the file is damaged or hostile") from error
    except ValueError as error:  # JSONDecodeError, UnicodeError, integers of thousands of digits
        raise BadInputError(f"{place} is not valid JSON ({shown(str(error))}): download or write it again") from error
    if not isinstance(value, dict):
        raise BadInputError(f"{place} is a JSON {type(value).__name__}: it must be an object")
    return value
