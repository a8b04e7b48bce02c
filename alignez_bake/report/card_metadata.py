"""The metadata of a model card: the YAML block that the hub reads.

It is written with yaml alone, in the order and spelling of huggingface_hub's `ModelCardData`, whose import would be a
good part of the time that a small bake takes.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from alignez_bake.hub.repo_id import looks_like_repo_id

if TYPE_CHECKING:
    from pathlib import Path

    from alignez_bake.model_folder import ModelFolder

LIBRARIES: Final = {
    "checkpoint": "transformers",
    "adapter": "peft",
    "gguf": "gguf",
    "edits": "alignez-bake",
}
# What lies beside the base instead of replacing it.
_ADAPTERS: Final = frozenset({"adapter", "gguf", "edits"})
_TAGS: Final = ("alignez-bake", "alignez", "self-alignment")
_MAX_CARD_BYTES: Final = 1024 * 1024
_MAX_METADATA: Final = 64 * 1024
_MAX_VALUE: Final = 500
_FRONT_MATTER: Final = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_NOTHING: Final = ("", "null", "~", "Null", "NULL")


class BaseCard(NamedTuple):
    """What the card of a base says that its descendants keep.

    Attributes:
        license: `license`, `license_name` and `license_link`, those that are there.
        language: codes of languages.
        problem: why the card, or a value of it, was not taken over; None if all was.
    """

    license: dict[str, str]
    language: tuple[str, ...] = ()
    problem: str | None = None


def read_base_card(folder: Path) -> BaseCard:
    """Licence and languages from the front matter of a folder's README.md; nothing where there is none.

    What cannot be read is no reason to refuse a bake, but is named: the new card says so.
    """
    path = folder / "README.md"
    if not path.is_file():
        return BaseCard({})
    if path.stat().st_size > _MAX_CARD_BYTES:
        return BaseCard({}, problem="the base's card is too large to be read")
    try:
        match = _FRONT_MATTER.match(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        return BaseCard({}, problem="the base's card is not UTF-8")
    if match is None:
        return BaseCard({})
    return _kept(match[1])


def card_yaml(
    base: ModelFolder, card: BaseCard, *, artefact: str, needs_code: bool, base_id: str | None, library: str | None
) -> str:
    """The metadata as YAML, without the lines around it.

    Args:
        base: the base model.
        card: of the base.
        artefact: name of the exporter.
        needs_code: whether the result brings code of its own.
        base_id: the base's name on the hub, if it has one.
        library: `library_name`; unless given, by the artefact.
    """
    import yaml  # noqa: PLC0415 - not needed by what writes no card

    base_name = base_id or _recorded_name(base)
    fields: dict[str, str | list[str] | None] = {
        "base_model": base_name,
        "language": list(card.language) or None,
        "library_name": library or LIBRARIES.get(artefact),
        **{name: card.license.get(name) for name in ("license", "license_name", "license_link")},
        "pipeline_tag": "text-generation",
        "tags": [*_TAGS, *(["lora"] if artefact == "adapter" else []), *(["custom_code"] if needs_code else [])],
        "base_model_relation": None if base_name is None else "adapter" if artefact in _ADAPTERS else "finetune",
    }
    present = {name: value for name, value in fields.items() if value is not None}
    return str(yaml.safe_dump(present, sort_keys=False, allow_unicode=True)).strip()


def _recorded_name(base: ModelFolder) -> str | None:
    """The name on the hub that transformers 4 noted in config.json, where it is one and not a folder's."""
    name = base.config.get("_name_or_path")
    return name if isinstance(name, str) and "@" not in name and looks_like_repo_id(name) else None


def _kept(text: str) -> BaseCard:
    import yaml  # noqa: PLC0415 - not needed by what reads no card

    if len(text) > _MAX_METADATA:
        return BaseCard({}, problem="the metadata of the base's card are too long to be read")
    try:
        # Strings, lists and dicts alone, so `no` stays the code of Norwegian, and merge keys cannot multiply.
        values: Any = yaml.load(text, Loader=yaml.BaseLoader)  # noqa: S506
    except (yaml.YAMLError, RecursionError, ValueError):
        return BaseCard({}, problem="the metadata of the base's card are no YAML")
    if not isinstance(values, dict):
        return BaseCard({}, problem="the metadata of the base's card are no YAML mapping")
    present = {name: value for name, value in values.items() if value not in _NOTHING}
    licence = {name: present[name] for name in ("license", "license_name", "license_link") if name in present}
    language = present.get("language", [])
    languages = language if isinstance(language, list) else [language]
    odd = [name for name, value in licence.items() if not _is_value(value)]
    odd += [] if all(_is_value(code) for code in languages) else ["language"]
    return BaseCard(
        {name: value for name, value in licence.items() if name not in odd},
        () if "language" in odd else tuple(languages),
        f"in the base's card {', '.join(odd)} cannot be read" if odd else None,
    )


def _is_value(value: object) -> bool:
    """Whether a value is one line of text, as licences, links and codes of languages are."""
    return isinstance(value, str) and 0 < len(value) <= _MAX_VALUE and value.isprintable()
