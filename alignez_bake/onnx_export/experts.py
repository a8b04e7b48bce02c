"""How a mixture of experts is computed while it is traced."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel

# The grouped product has no ONNX operator, and a loop over the experts that were hit depends on the data.
_TRACEABLE = "batched_mm"
_SWITCH = "_experts_implementation"


@contextmanager
def experts_in_batches(model: PreTrainedModel) -> Iterator[None]:
    """Inside this context the experts of the model, if it has any, are one batched product.

    transformers' own `set_experts_implementation` searches the source file of the model's class for experts, and does
    nothing where it finds none: that of an inserted checkpoint has none, its base's has. So this sets what that
    method sets: experts read it at each call. A release without the switch computes experts its own way.
    """
    before = getattr(model.config, _SWITCH, None)
    setattr(model.config, _SWITCH, _TRACEABLE)
    try:
        yield
    finally:
        setattr(model.config, _SWITCH, before)
