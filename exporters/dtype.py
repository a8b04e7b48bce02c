"""The dtype that all weights of a result may be asked to have."""

from __future__ import annotations

from typing import Final, Literal

from alignez_bake.errors import BadInputError

DtypeName = Literal["float32", "float16", "bfloat16", "float64"]
FILE_DTYPES: Final[dict[str, str]] = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}


def check_dtype(name: str | None) -> DtypeName | None:
    """A weight dtype by transformers' name, or None for the base's own.

    Raises:
        BadInputError: not one of those.
    """
    if name is not None and name not in FILE_DTYPES:
        raise BadInputError(f"--dtype {name!r} is unknown: use one of {', '.join(FILE_DTYPES)}")
    return name  # type: ignore[return-value]  # one of the literals, as just checked


def file_dtype(name: str | None) -> str | None:
    """The file's spelling of a dtype that is asked for, such as "F32"; None for the base's own.

    Raises:
        BadInputError: as `check_dtype`.
    """
    checked = check_dtype(name)
    return None if checked is None else FILE_DTYPES[checked]
