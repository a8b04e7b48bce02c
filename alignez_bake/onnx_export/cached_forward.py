"""A causal model as a function of tensors alone, which is what a graph can be traced from."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import DynamicCache

from alignez_bake.errors import BadInputError
from alignez_bake.language_model.kv_cache import cache_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

    KeysAndValues = Sequence[tuple[torch.Tensor, torch.Tensor]]


class CachedForward(nn.Module):
    """One forward pass with the cache as plain tensors, in and out.

    The cache is made without a config: with one, layers of a sliding window would keep no more than the window, and
    the graph's `present` would not be `past` and the new tokens. The mask, which is made from the config all the
    same, hides what is outside the window.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Take a model whose forward pass has positions and a cache.

        Raises:
            BadInputError: it has not.
        """
        super().__init__()
        if "position_ids" not in inspect.signature(model.forward).parameters:
            raise BadInputError(
                f"{type(model).__name__} takes no position_ids, which rows of different lengths need: "
                "it cannot be exported as a graph"
            )
        self.model = model
        self._cache_name = cache_name(model)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        past: KeysAndValues,
    ) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
        """Logits of every new position, and the cache with the new positions behind the past ones.

        Args:
            input_ids: int64 [batch, new].
            attention_mask: int64 [batch, past + new]; 0 at padding.
            position_ids: int64 [batch, new].
            past: keys and values of each layer, [batch, heads, past, width]; empty: no cache, and none is expected.

        Returns:
            Logits [batch, new, vocabulary] in the model's dtype; keys and values as `past`, [.., past + new, ..].
        """
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(past):
            cache.update(keys, values, layer)
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=True,
            **{self._cache_name: cache},
        )
        present = [(layer.keys, layer.values) for layer in output[self._cache_name].layers]
        return output.logits, present


def cache_shapes(forward: CachedForward) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values of one token, [1, heads, 1, width]: found by running the model, the same for any architecture.

    The config would have to be read differently for each: latent attention has keys and values of different widths.

    Raises:
        BadInputError: some layer keeps something else than keys and values.
    """
    token = torch.zeros((1, 1), dtype=torch.long, device=forward.model.device)
    present: list[tuple[torch.Tensor, torch.Tensor]]
    with torch.no_grad():
        _, present = forward(token, torch.ones_like(token), token, [])
    for layer, pair in enumerate(present):
        if any(tensor is None or tensor.dim() != 4 or tensor.shape[2] != 1 for tensor in pair):
            raise BadInputError(
                f"layer {layer} of {type(forward.model).__name__} keeps no keys and values of [batch, heads, length, "
                "width]: a graph with such a cache cannot be exported"
            )
    return present
