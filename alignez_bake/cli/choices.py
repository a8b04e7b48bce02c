"""Values of options that several commands check alike."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from alignez_bake.errors import BadInputError

if TYPE_CHECKING:
    from alignez_bake.certificate.verdict import Level


def check_level(name: str, option: str) -> Level:
    """A level of the certificate.

    Raises:
        BadInputError: neither of the two.
    """
    levels: dict[str, Level] = {"tensors": "tensors", "forward": "forward"}
    if name in levels:
        return levels[name]
    raise BadInputError(f"{option} {name!r} is unknown: use tensors or forward")


def weight_bits(*, int4: bool, int8: bool) -> int | None:
    """How many bits quantised weights have; None where they are not quantised.

    Raises:
        BadInputError: both flags.
    """
    if int4 and int8:
        raise BadInputError("--int4 and --int8 are two widths of the same weights: choose one")
    return 4 if int4 else 8 if int8 else None


def parse_weights(text: str | None) -> dict[str, float] | None:
    """Dials by objective, such as `helpful=1,humor=-0.3`; the plan checks the names.

    Raises:
        BadInputError: not of that form, a name given twice, or a weight that is no finite number.
    """
    if text is None:
        return None
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        try:
            weight = float(value) if equals else 1.0
        except ValueError:
            weight = math.nan
        if not name or not math.isfinite(weight):
            raise BadInputError(f"--objective {text!r}: {part.strip()!r} is not of the form NAME=WEIGHT")
        if name in weights:
            raise BadInputError(f"--objective {text!r}: {name!r} is given twice")
        weights[name] = weight
    return weights


def unescaped(text: str | None) -> str | None:
    r"""A template as typed in a shell: `\n` and `\t` mean a line break and a tab."""
    return None if text is None else text.replace("\\n", "\n").replace("\\t", "\t")
