"""The config of an equivalent model of another type, where it computes the same; else why it does not.

Every entry is accounted for by name: two config classes give an absent entry different values, and an entry that one
of them ignores may matter to the other.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from alignez_bake.lowering.decide import Refusal
from alignez_bake.safetensors_io.strict_json import shown

if TYPE_CHECKING:
    from collections.abc import Mapping

    from alignez_bake.rehome.places import DroppedEntry, Equivalent

_REPLACED = frozenset({"model_type", "architectures"})


def equivalent_config(config: Mapping[str, Any], equivalent: Equivalent) -> dict[str, Any] | Refusal:
    """Config.json of the same model as another type.

    Args:
        config: the base's config.json.
        equivalent: what the base's type can become.

    Returns:
        The config, sorted by name as transformers writes it; or why the other type would compute something else.
    """
    source, target = config.get("model_type"), equivalent.model_type
    known = _REPLACED | equivalent.entries.keys() | set(equivalent.carried) | equivalent.dropped.keys()
    unknown = sorted(config.keys() - known)
    if unknown:
        names = ", ".join(name if name.isidentifier() else shown(name) for name in unknown)
        return Refusal(
            f"config.json has {names}, and it is not known what that means to a {target} model: remove "
            f"what has no effect on this {source} model"
        )
    result = {name: config.get(name, default) for name, default in equivalent.entries.items()}
    for name, dropped in equivalent.dropped.items():
        value = config.get(name, dropped.default)
        if (obstacle := _obstacle(dropped, value, result)) is not None:
            return Refusal(f"config.json has {name} = {json.dumps(value)}{_absent(name, config)}, {obstacle}")
    # A rule of the llama config class, the only one that others become: it refuses to load what breaks it.
    width, heads = result["hidden_size"], result["num_attention_heads"]
    if not _are_positive(width, heads) or width % heads:
        return Refusal(
            f"a {target} model's hidden_size must be a multiple of num_attention_heads, not {shown(width)}, "
            f"{shown(heads)}"
        )
    result.update({name: config[name] for name in equivalent.carried if name in config})
    if result.get("rope_parameters") is None and result.get("rope_theta") is None:
        result["rope_theta"] = equivalent.rope_theta
    result.update(equivalent.added)
    result.update(model_type=target, architectures=[equivalent.class_name])
    return dict(sorted(result.items()))


def _absent(name: str, config: Mapping[str, Any]) -> str:
    return "" if name in config else " (by default: the entry is absent)"


def _obstacle(dropped: DroppedEntry, value: object, entries: Mapping[str, Any]) -> str | None:
    """What the other type would do otherwise because it does not know an entry of this value; None if nothing."""
    if dropped.rule == "false" and value not in (None, False):
        return "which it would ignore"
    if dropped.rule == "full_attention" and value is not None and not _are_all_full(value):
        return "but all its layers would see the whole context"
    if dropped.rule == "idle_window" and value is not None:
        context = entries["max_position_embeddings"]
        if not _are_positive(value, context) or value < context:
            return f"a window that acts within the context of {shown(context)} tokens, but it would see all of it"
    return None


def _are_all_full(value: object) -> bool:
    return isinstance(value, list) and all(kind == "full_attention" for kind in value)


def _are_positive(*values: object) -> bool:
    return all(isinstance(value, int) and not isinstance(value, bool) and value > 0 for value in values)
