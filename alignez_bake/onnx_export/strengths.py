"""Strengths of inserted edits as part of their weights: in a graph that is one node less for each edit."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from alignez_bake.architectures.architecture import INSERTED_EDITS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn
    from transformers import PreTrainedModel

_SCALED = ("left", "bias")
# One rounding to float32 loses 6e-8 of a tensor's norm; more than this is an overflow or lost digits.
_TOLERANCE = 1e-6


@contextmanager
def strengths_in_weights(model: PreTrainedModel) -> Iterator[None]:
    """Inside this context inserted edits have strength 1 and their L and c times what it was: the same function.

    strength · (g(r R + s) Lᵀ + c) = g(r R + s) (strength · L)ᵀ + strength · c, up to one rounding of L and c. An edit
    whose scaled tensors their dtype cannot hold stays as it is, and its strength is a node.

    A graph's initialisers may be the parameters themselves, so a graph must be saved inside this context too.
    """
    before = []
    try:
        for path, module in model.named_modules():
            if path.split(".")[-2:-1] != [INSERTED_EDITS]:
                continue
            parameters = {name: module.get_parameter(name) for name in _SCALED if getattr(module, name) is not None}
            scaled = {name: parameter.data * _strength(module) for name, parameter in parameters.items()}
            if not all(
                _held(scaled[name], parameter.data, _strength(module)) for name, parameter in parameters.items()
            ):
                continue
            before.append((module, module.strength, {name: parameter.data for name, parameter in parameters.items()}))
            _set(module, 1.0, scaled)
        yield
    finally:
        for module, strength, tensors in before:
            _set(module, strength, tensors)


def _strength(edit: nn.Module) -> float:
    strength = edit.strength
    assert isinstance(strength, float | int)
    return strength


def _held(scaled: torch.Tensor, tensor: torch.Tensor, strength: float) -> bool:
    """Whether the product can be divided again. False for a strength of zero, which is left to the graph."""
    lost = torch.linalg.vector_norm(scaled / strength - tensor) if strength else torch.tensor(torch.inf)
    return bool(lost <= _TOLERANCE * torch.linalg.vector_norm(tensor))


def _set(edit: nn.Module, strength: object, tensors: dict[str, torch.Tensor]) -> None:
    edit.strength = strength  # type: ignore[assignment]
    for name, tensor in tensors.items():
        edit.get_parameter(name).data = tensor
