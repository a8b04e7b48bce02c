"""Objectives: what a model is to become, told by the words of a good and a bad persona."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Literal

from alignez_bake.errors import BadInputError
from alignez_bake.safetensors_io.strict_json import parse_object, shown

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

Side = Literal["good", "bad"]
SIDES: tuple[Side, ...] = ("good", "bad")

_MAX_FILE_BYTES = 1024 * 1024
_MAX_WORDS_LENGTH = 200
_NOT_IN_NAMES = ",="


@dataclass(frozen=True)
class Objective:
    """The words of the two personas (AlignEZ, arXiv 2406.03642, step 1).

    Attributes:
        name: what the command line and the files call it.
        good: the word or words of the good persona, as in "You are a {good} assistant."
        bad: those of the bad persona, as in "Pretend you are a {bad} assistant."
    """

    name: str
    good: str
    bad: str

    def words(self, side: Side) -> str:
        """The words of one persona."""
        return self.good if side == "good" else self.bad


def shipped_objectives() -> dict[str, Objective]:
    """The objectives of the paper: helpful, harmless, humor."""
    file = resources.files("alignez_bake.prompts.data").joinpath("objectives.json")
    return _parse_objectives_file(file.read_bytes(), "the shipped objectives.json")


def read_objectives_file(path: Path) -> dict[str, Objective]:
    """Objectives of one's own: `{"truthful": {"good": "truthful", "bad": "deceptive"}}`.

    Returns:
        The objectives by name, in the order of the file.

    Raises:
        BadInputError: no such file, too large, or not of that form; the message names the entry.
    """
    if not path.is_file():
        raise BadInputError(f"no such objectives file: {path}")
    if path.stat().st_size > _MAX_FILE_BYTES:
        raise BadInputError(f"{path} has {path.stat().st_size} bytes: an objectives file has at most {_MAX_FILE_BYTES}")
    return _parse_objectives_file(path.read_bytes(), str(path))


def parse_objectives(text: str, known: Collection[str]) -> dict[str, float]:
    """The value of `--objective`: names with their weights, such as `helpful=1,humor=-0.3`.

    Args:
        text: names separated by commas, each with `=weight` or without, which means 1.
        known: the names that exist.

    Returns:
        The weights by name, in the order given.

    Raises:
        BadInputError: nothing given, an unknown name, one given twice, or a weight that is no finite number.
    """
    weights: dict[str, float] = {}
    for item in text.split(","):
        name, equals, number = (part.strip() for part in item.partition("="))
        if name not in known:
            listed = ", ".join(known) or "none"
            raise BadInputError(
                f"unknown objective {name!r} in {text!r}: known are {listed}; others come from --objectives-file"
            )
        if name in weights:
            raise BadInputError(f"objective {name!r} is given twice in {text!r}")
        weights[name] = _weight(number, name) if equals else 1.0
    return weights


def _weight(text: str, name: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise BadInputError(f"weight {text!r} of objective {name!r} must be a finite number, as in {name}=0.5")
    return weight


def _parse_objectives_file(data: bytes, place: str) -> dict[str, Objective]:
    objectives = {name: _objective(name, entry, place) for name, entry in parse_object(data, place).items()}
    if not objectives:
        raise BadInputError(f"{place} holds no objective")
    return objectives


def _objective(name: str, entry: object, place: str) -> Objective:
    if not name.strip() or name != name.strip() or not name.isprintable() or any(c in name for c in _NOT_IN_NAMES):
        raise BadInputError(
            f"{place}: {shown(name)} is no name of an objective: it must be printable, without comma, equals sign "
            "or space at its ends"
        )
    if not isinstance(entry, dict):
        raise BadInputError(
            f'{place}: objective {shown(name)} must be an object such as {{"good": "helpful", "bad": "useless"}}'
        )
    _refuse_unknown_keys(entry, f"{place}: objective {shown(name)}")
    return Objective(
        name, *(_persona_words(entry.get(side), f"{place}: {side!r} of objective {shown(name)}") for side in SIDES)
    )


def _refuse_unknown_keys(entry: Mapping[str, object], place: str) -> None:
    unknown = [key for key in entry if key not in SIDES]
    if unknown:
        raise BadInputError(f"{place} has an unknown key {shown(unknown[0])}: its keys are 'good' and 'bad'")


def _persona_words(value: object, place: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise BadInputError(f"{place} is missing or no text: it needs the words of a persona")
    if len(value) > _MAX_WORDS_LENGTH or not value.isprintable():
        raise BadInputError(f"{place} must be one line of at most {_MAX_WORDS_LENGTH} characters: {shown(value)}")
    return value.strip()
