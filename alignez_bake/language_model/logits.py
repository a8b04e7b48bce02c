"""Logits of some columns of a batch alone: all of them would be gigabytes at a large vocabulary."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from alignez_bake.language_model.batching import PaddedBatch


def logits_of_columns(model: PreTrainedModel, batch: PaddedBatch, first: int, last: int) -> torch.Tensor:
    """One forward pass whose head runs at columns [first, last) alone.

    Args:
        model: the model; its hooks act.
        batch: [batch, length].
        first: first column.
        last: the column after the last one.

    Returns:
        [batch, last - first, vocabulary], in the model's dtype.
    """
    columns = torch.arange(first, last, device=batch.input_ids.device)
    logits: torch.Tensor = model(**batch._asdict(), use_cache=False, logits_to_keep=columns).logits
    if logits.shape[1] != last - first:
        # opt of transformers 4.57 gives every column, whatever it is asked for.
        assert logits.shape[1] == batch.input_ids.shape[1]
        logits = logits[:, first:last]
    return logits
