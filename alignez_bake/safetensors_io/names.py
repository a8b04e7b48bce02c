"""From the name of a parameter in transformers' module tree to its key in the file."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from alignez_bake.errors import BadInputError
from alignez_bake.safetensors_io.strict_json import shown

if TYPE_CHECKING:
    from collections.abc import Collection

# difflib compares with every key: past this many, those with the same ending only.
_COMPARED = 2000


def resolve_key(names: Collection[str], parameter: str, base_model_prefix: str) -> str:
    """The file's key of one parameter.

    A file may be saved from the model without its head, and then lacks the prefix (released gpt2:
    `h.0.attn.c_proj.weight` for `transformer.h.0.attn.c_proj.weight`); or the parameter may be named from inside
    of the base model. So three keys are looked for: the name itself; without `base_model_prefix` and its dot;
    with them. Exactly one must be there. Other keys of the file (mask buffers, drafts, vision towers) do not
    matter.

    Args:
        names: the file's keys; a set, dict or `TensorFolder` makes look-ups cheap.
        parameter: the name in the module tree, such as "model.layers.3.self_attn.o_proj.weight".
        base_model_prefix: transformers' attribute of that name, such as "model"; "" looks for the name alone.

    Returns:
        The key.

    Raises:
        BadInputError: none of them is there (the nearest keys are named), or more than one.
    """
    candidates = [parameter]
    if base_model_prefix:
        prefix = f"{base_model_prefix}."
        if parameter.startswith(prefix):
            candidates.append(parameter.removeprefix(prefix))
        candidates.append(prefix + parameter)
    matches = [key for key in candidates if key in names]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise BadInputError(
            f"parameter {shown(parameter)} is ambiguous: the file has {_listed(matches)}, and only one of them can be "
            "the model's; remove the other from the file"
        )
    nearest = _nearest(names, parameter)
    raise BadInputError(
        f"parameter {shown(parameter)} is not in the file, which has none of {_listed(candidates)}; nearest: "
        f"{_listed(nearest) if nearest else 'no similar key'}. Check that config.json and weights belong together"
    )


def _nearest(names: Collection[str], parameter: str) -> list[str]:
    keys = list(names)
    if len(keys) > _COMPARED:
        ending = ".".join(parameter.rsplit(".", 2)[-2:])
        keys = [key for key in keys if key.endswith(ending)][:_COMPARED] or keys[:_COMPARED]
    return difflib.get_close_matches(parameter, keys, n=3)


def _listed(names: Collection[str]) -> str:
    return ", ".join(shown(name) for name in names)
