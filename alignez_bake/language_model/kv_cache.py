"""The key-value cache of a model under the name that its release of transformers gives it."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

_NAMES = ("cache", "past_key_values")


def cache_name(model: nn.Module) -> str:
    """What the forward pass calls the cache, as an argument and in its output: `cache` from transformers 5.24 on.

    Until then it was `past_key_values`, which later releases take with a warning, and some day no more.

    Raises:
        ValueError: the model has no cache under either name.
    """
    parameters = inspect.signature(model.forward).parameters
    for name in _NAMES:
        if name in parameters:
            return name
    raise ValueError(f"the forward pass of {type(model).__name__} has no argument {' or '.join(_NAMES)}")
