"""A judge: a function of the user's that says how good an answer is, loaded from `file.py:function`."""

from __future__ import annotations

import hashlib
import importlib.util
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignez_bake.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from alignez_bake.prompts.queries import Query

    Judge = Callable[[Query, str], float]


def load_judge(address: str) -> Judge:
    """The function at `path/to/rules.py:function`; running that file is what the user asks for by naming it.

    Args:
        address: path of a Python file and name of a function in it, `function(query: dict, answer: str) -> float`
            in [-1, 1], where a value above 0 means a good answer.

    Returns:
        The function, wrapped so that what it raises or returns out of bounds becomes a BadInputError.

    Raises:
        BadInputError: no such file or function, or the file fails when it is run.
    """
    file, colon, name = address.rpartition(":")
    if not colon or not file or not name.isidentifier():
        raise BadInputError(f"judge {address!r} must be a Python file and a function, as in rules.py:judge")
    path = Path(file)
    if not path.is_file() or path.suffix != ".py":
        raise BadInputError(f"judge {address!r}: no such Python file: {file}")
    function = getattr(_run_file(path, address), name, None)
    if not callable(function):
        raise BadInputError(f"judge {address!r}: {file} has no function {name!r}")

    def judge(query: Query, answer: str) -> float:
        try:
            value = function(dict(query), answer)
        except Exception as error:
            raise BadInputError(
                f"judge {address!r} failed for the query {str(query.get('query'))[:60]!r}: "
                f"{type(error).__name__}: {error}"
            ) from error
        return _checked(value, address)

    return judge


def _run_file(path: Path, address: str) -> ModuleType:
    name = f"_alignez_bake_judge_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up while it runs
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise BadInputError(f"judge {address!r}: {path} fails: {type(error).__name__}: {error}") from error
    finally:
        del sys.modules[name]
    return module


def _checked(value: Any, address: str) -> float:  # noqa: ANN401 - whatever a user's function returns
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not -1 <= number <= 1:
        raise BadInputError(f"judge {address!r} returned {value!r}: it must return a number from -1 to 1")
    return number
