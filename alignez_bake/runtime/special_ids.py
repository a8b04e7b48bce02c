"""Which tokens end an answer, and what stands at padding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from alignez_bake.errors import BadInputError
from alignez_bake.runtime.escaping import shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from alignez_bake.runtime.side_files import SideFiles
    from alignez_bake.runtime.tokenizer import TextTokenizer

_MOST_IDS: Final = 1024


def stated_stop_ids(files: SideFiles, tokenizer: TextTokenizer, named: Mapping[str, str]) -> frozenset[int]:
    """Tokens that end an answer: those that generation_config.json states, else config.json, and the EOS token.

    Args:
        files: the folder.
        tokenizer: its tokenizer.
        named: text of the special tokens, by name.

    Raises:
        BadInputError: `eos_token_id` is neither a number nor a list of numbers.
    """
    eos = tokenizer.id_of(named["eos_token"]) if "eos_token" in named else None
    return configured_stop_ids(files) | (frozenset() if eos is None else {eos})


def configured_stop_ids(files: SideFiles) -> frozenset[int]:
    """`eos_token_id` of generation_config.json, else of config.json; may be empty.

    Raises:
        BadInputError: it is neither a number nor a list of numbers.
    """
    for name in ("generation_config.json", "config.json"):
        stated = files.settings(name).get("eos_token_id")
        if stated is not None:
            return frozenset(_ids(stated, str(files.folder / name)))
    return frozenset()


def in_vocabulary(ids: Iterable[int], vocabulary: int | None) -> frozenset[int]:
    """Those that the model can generate; the others end nothing. None: its vocabulary is not known."""
    return frozenset(token for token in ids if token >= 0 and (vocabulary is None or token < vocabulary))


def pad_id(tokenizer: TextTokenizer, named: Mapping[str, str], stops: frozenset[int], vocabulary: int | None) -> int:
    """The id at padding: the tokenizer's own, else one that ends an answer, else 0.

    The mask hides padding, so any id of the vocabulary gives the same answer.
    """
    own = tokenizer.id_of(named["pad_token"]) if "pad_token" in named else None
    return own if own is not None and in_vocabulary([own], vocabulary) else min(stops, default=0)


def _ids(value: object, place: str) -> list[int]:
    values: list[object] = value if isinstance(value, list) else [value]
    ids = [token for token in values if type(token) is int and abs(token) < 2**31]  # bool is an int of another type
    if len(values) > _MOST_IDS or len(ids) < len(values):
        raise BadInputError(
            f"{place}: eos_token_id is {shown(value)}, and a token id or a list of up to {_MOST_IDS} is meant: "
            "copy the file again"
        )
    return ids
