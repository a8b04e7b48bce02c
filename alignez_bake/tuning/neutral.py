"""Neutral texts: what an edit should leave alone, and against which its drift is measured.

Those that the project ships are short and of many kinds (weather, timetables, recipes, facts, code, letters), one or
two sentences each, so that a model of any training has read their like. The longer passages of
`prompts.queries.neutral_texts` are for certificates and refits, which need long contexts.
"""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Final, NamedTuple

from alignez_bake.errors import BadInputError
from alignez_bake.prompts.text_lines import read_text_lines

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from alignez_bake.prompts.prompt_form import PromptForm

MAX_FILE_BYTES: Final = 4 * 1024 * 1024
"""About a million tokens: every candidate that survives the first round reads all of them."""


class NeutralSplit(NamedTuple):
    """Neutral texts: those that fits see, to leave them alone, and those on which the drift is measured."""

    left_alone: Sequence[str]
    measured: Sequence[str]


def shipped_neutral_texts() -> list[str]:
    """The neutral texts that the project ships, one a line."""
    file = resources.files("alignez_bake.tuning.data").joinpath("neutral.txt")
    return file.read_text(encoding="utf-8").splitlines()


def check_neutral_file(path: Path) -> None:
    """Refuse, before a model is loaded, a file that cannot hold neutral texts.

    Raises:
        BadInputError: no such file, or a larger one than such a file may be.
    """
    if not path.is_file():
        raise BadInputError(f"no such file of neutral texts: {path}")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise BadInputError(
            f"{path} has {path.stat().st_size} bytes: a file of neutral texts has at most {MAX_FILE_BYTES}; a hundred "
            "short ones are enough"
        )


def read_neutral_texts(path: Path, form: PromptForm) -> list[str]:
    """Neutral texts of a user's own: plain lines, or JSON lines with the key `text`, whose texts may be many lines.

    Args:
        path: the file; `text_lines.read_text_lines` says which of both it is.
        form: how texts become tokens.

    Raises:
        BadInputError: no such file, too large, not UTF-8, no text in it, a line that does not fit, or a text of a
            single token, which leaves nothing to predict; the message has its line.
    """
    check_neutral_file(path)
    lines = read_text_lines(path, "text")
    if not lines:
        raise BadInputError(f"{path} holds no neutral text: give some, one a line")
    for number, entry in lines:
        if len(form.text_ids(entry["text"])) < 2:
            raise BadInputError(
                f"{path}, line {number} is a single token, which leaves nothing to predict: {entry['text']!r}"
            )
    return [entry["text"] for _, entry in lines]


def split_neutral(path: Path | None, form: PromptForm, *, seen: bool) -> NeutralSplit:
    """The user's own texts by turns, so that none is measured on that was fitted to; shipped ones only measure.

    The shipped ones are of no kind that the user asked to keep, and to see them costs where the base cannot read them
    (docs/decisions/variants.md).

    Args:
        path: the user's file; None: the shipped ones.
        form: how texts become tokens.
        seen: whether a method leaves texts alone that it sees.

    Raises:
        BadInputError: as `read_neutral_texts`.
    """
    if path is None:
        return NeutralSplit((), shipped_neutral_texts())
    texts = read_neutral_texts(path, form)
    if len(texts) < 2 or not seen:
        return NeutralSplit((), texts)
    return NeutralSplit(texts[::2], texts[1::2])
