"""What makes an equivalent model another than its base: for people, and for whoever writes it."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from alignez_bake.lowering.decide import Refusal
from alignez_bake.rehome.places import places_of
from alignez_bake.rehome.tokenizer import TOKENIZER_CONFIG, tokenizer_changes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from alignez_bake.model_folder import ModelFolder
    from alignez_bake.rehome.places import Equivalent


def changed_tokenizer_entries(base: ModelFolder, rehomed: ModelFolder) -> Mapping[str, str]:
    """Entries of tokenizer_config.json that an equivalent of another type needs for the same tokenizer.

    Returns:
        The entries to set in the base's tokenizer_config.json; none where the file stays as it is.

    Raises:
        ValueError: `rehomed` is no equivalent of `base`, as `rehome` makes it.
    """
    if base.architecture.model_type == rehomed.architecture.model_type:
        return {}
    changes = tokenizer_changes(base.path, _equivalent(base))
    if isinstance(changes, Refusal):
        raise ValueError(changes.reason)  # noqa: TRY004 - `rehome` would have refused: a fault of ours
    return changes


def _equivalent(base: ModelFolder) -> Equivalent:
    places = places_of(base.architecture.model_type)
    if places is None or places.equivalent is None:
        raise ValueError(f"a {base.architecture.model_type} model has no equivalent of another type")
    return places.equivalent


def changes(base: ModelFolder, rehomed: ModelFolder) -> tuple[str, ...]:
    """What differs between a base and its equivalent, one line each; none for the base itself.

    Raises:
        ValueError: as `changed_tokenizer_entries`.
    """
    lines = _config_lines(base, rehomed)
    lines += [
        f"{TOKENIZER_CONFIG}: {entry} is {value}, so that the tokenizer stays the same"
        for entry, value in changed_tokenizer_entries(base, rehomed).items()
    ]
    added = [name for name in rehomed.tensors.names() if name not in base.tensors]
    grown = [
        name for name in base.tensors.names() if base.tensors.entry(name).shape != rehomed.tensors.entry(name).shape
    ]
    if added:
        lines.append(f"{len(added)} tensors added")
    if grown:
        lines.append(f"{len(grown)} tensors grown")
    if added or grown:
        before = _parameters(base)
        more = _parameters(rehomed) - before
        lines.append(f"{more:,} parameters added, {100 * more / before:.2g} % of the base's")
    return tuple(lines)


def _config_lines(base: ModelFolder, rehomed: ModelFolder) -> list[str]:
    old, new = base.config, rehomed.config
    lines = []
    written_out: frozenset[str] = frozenset()
    if old["model_type"] != new["model_type"]:
        lines.append(f"model type {old['model_type']} -> {new['model_type']}, an equivalent")
        equivalent = _equivalent(base)
        written_out = frozenset(set(new) - set(old) - set(equivalent.added))
    lines += [
        f"config.json: {entry} {_shown(entry, old)} -> {_shown(entry, new)}"
        for entry in sorted((set(old) | set(new)) - written_out - {"model_type", "architectures"})
        if entry not in old or entry not in new or old[entry] != new[entry]
    ]
    if written_out:
        lines.append(f"config.json: {len(written_out)} defaults of {old['model_type']} written out")
    return lines


def _shown(entry: str, config: Mapping[str, Any]) -> str:
    return json.dumps(config[entry]) if entry in config else "absent"


def _parameters(model: ModelFolder) -> int:
    return sum(math.prod(model.tensors.entry(name).shape) for name in model.tensors.names())
