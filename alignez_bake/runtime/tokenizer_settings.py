"""What a folder says about its tokenizer beside tokenizer.json, as transformers reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from alignez_bake.errors import BadInputError
from alignez_bake.runtime.escaping import shown

if TYPE_CHECKING:
    from collections.abc import Mapping

    from alignez_bake.runtime.side_files import SideFiles

NAMED: Final = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Special tokens that have a name: those that a chat template may use."""

_FLAGS: Final = ("single_word", "lstrip", "rstrip", "normalized", "special")
_CONFIG: Final = "tokenizer_config.json"


@dataclass(frozen=True)
class AddedToken:
    """An entry of `added_tokens_decoder`.

    Attributes:
        id: what it stands for.
        content: its text.
        flags: how it is looked for in a text; `tokenizers.AddedToken` has them.
    """

    id: int
    content: str
    flags: Mapping[str, bool]


@dataclass(frozen=True)
class TokenizerSettings:
    """tokenizer_config.json, special_tokens_map.json and the chat template.

    `add_bos_token` and `add_eos_token` are not among them: where there is a tokenizer.json, transformers 5 leaves to
    its post-processor what goes around a text.

    Attributes:
        named: text of the special tokens that are set, by the names in `NAMED`.
        unnamed: further special tokens.
        added: entries of `added_tokens_decoder`, by id.
        chat_template: Jinja source, or None.
    """

    named: Mapping[str, str]
    unnamed: tuple[str, ...]
    added: tuple[AddedToken, ...]
    chat_template: str | None


def read_tokenizer_settings(files: SideFiles) -> TokenizerSettings:
    """Read and check them.

    Raises:
        BadInputError: a file that cannot be read, or an entry of another type than it has.
    """
    config = files.settings(_CONFIG)
    # A config without a table of tokens is of an older release, which kept the names in a file of their own.
    tokens = config if "added_tokens_decoder" in config else {**config, **files.settings("special_tokens_map.json")}
    place = str(files.folder / _CONFIG)
    named = {name: _content(tokens[name], name, place) for name in NAMED if tokens.get(name) is not None}
    return TokenizerSettings(
        named=named,
        unnamed=_unnamed(tokens, place),
        added=_added(config, place),
        chat_template=files.text("chat_template.jinja") or _template(config.get("chat_template"), place),
    )


def _content(token: object, name: str, place: str) -> str:
    """A token is its text, or an object with it."""
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str):
        raise BadInputError(f"{place}: {name} is {shown(token)}, and a token is a text: save the tokenizer again")
    return text


def _flag(config: Mapping[str, object], name: str, place: str) -> bool | None:
    value = config.get(name)
    if value is not None and not isinstance(value, bool):
        raise BadInputError(f"{place}: {name} is {shown(value)}, and true or false is meant: save the tokenizer again")
    return value


def _unnamed(tokens: Mapping[str, object], place: str) -> tuple[str, ...]:
    found: list[str] = []
    for name in ("extra_special_tokens", "additional_special_tokens"):
        values = tokens.get(name) or []
        if not isinstance(values, (list, dict)):
            raise BadInputError(f"{place}: {name} is {shown(values)}, and a list is meant: save the tokenizer again")
        entries = values.values() if isinstance(values, dict) else values
        found += [_content(value, name, place) for value in entries]
    return tuple(dict.fromkeys(found))


def _added(config: Mapping[str, object], place: str) -> tuple[AddedToken, ...]:
    table = config.get("added_tokens_decoder") or {}
    if not isinstance(table, dict):
        raise BadInputError(f"{place}: added_tokens_decoder is no object: save the tokenizer again")
    found = []
    for key, entry in table.items():
        if not (key.isascii() and key.isdigit() and len(key) < 10 and isinstance(entry, dict)):
            raise BadInputError(f"{place}: added_tokens_decoder has an entry {shown(key)} that is no token's")
        flags = {name: _flag(entry, name, place) for name in _FLAGS}
        content = _content(entry, f"added_tokens_decoder entry {key}", place)
        found.append(AddedToken(int(key), content, {name: flag for name, flag in flags.items() if flag is not None}))
    return tuple(sorted(found, key=lambda token: token.id))


def _template(value: object, place: str) -> str | None:
    """One template, or several by name, of which the one without tools is wanted."""
    if isinstance(value, list):
        pairs = [(entry.get("name"), entry.get("template")) for entry in value if isinstance(entry, dict)]
        value = next((template for name, template in pairs if name == "default"), None)
    if value is not None and not isinstance(value, str):
        raise BadInputError(f"{place}: chat_template is {shown(value)}, and a text is meant: save the tokenizer again")
    return value or None
