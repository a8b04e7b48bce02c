"""Padding and batching: the only place that turns lists of ids into tensors.

Masks and positions are always given to the model explicitly, whatever the side of the padding: several
architectures (gpt2 among them) count positions from the left edge when they are left out, which shifts every
sequence with left padding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from alignez_bake.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Sequence


class PaddedBatch(NamedTuple):
    """Sequences of different lengths as tensors.

    Attributes:
        input_ids: int64 [batch, length]; the padding id where the mask is 0.
        attention_mask: int64 [batch, length]; 1 at tokens, 0 at padding.
        position_ids: int64 [batch, length]; 0, 1, 2, ... over the tokens of each row; within the row's own
            range at padding, so that learned positions are never looked up beyond it.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor


def right_padded(
    sequences: Sequence[Sequence[int]], pad_id: int, device: torch.device | str = "cpu", *, width: int | None = None
) -> PaddedBatch:
    """Tokens first, padding after them: for every pass that generates nothing.

    Args:
        sequences: token ids, each with at least one.
        pad_id: id at padding; any id of the vocabulary, since the mask hides it.
        device: where the tensors live.
        width: length of the rows; that of the longest sequence unless given.

    Raises:
        BadInputError: no sequence, or an empty one.
    """
    return _padded(sequences, pad_id, device, left=False, width=width)


def left_padded(
    sequences: Sequence[Sequence[int]], pad_id: int, device: torch.device | str = "cpu", *, width: int | None = None
) -> PaddedBatch:
    """Padding first, so that the last column holds the last token of every row: for generation.

    Args, errors: as `right_padded`.
    """
    return _padded(sequences, pad_id, device, left=True, width=width)


def length_sorted_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Indices in batches of like length, the longest first, so that padding is small and memory peaks at once.

    Equal lengths keep the caller's order; the result depends on the arguments alone.

    Args:
        lengths: length of each item.
        batch_size: most items in a batch, at least 1.

    Returns:
        Batches that hold every index exactly once.

    Raises:
        BadInputError: a batch size below 1.
    """
    if batch_size < 1:
        raise BadInputError(f"a batch needs at least one sequence: batch size {batch_size}")
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def _padded(
    sequences: Sequence[Sequence[int]], pad_id: int, device: torch.device | str, *, left: bool, width: int | None
) -> PaddedBatch:
    if not sequences:
        raise BadInputError("a batch needs at least one sequence")
    lengths = [len(sequence) for sequence in sequences]
    if min(lengths) == 0:
        raise BadInputError(f"sequence {lengths.index(0)} is empty: the model needs at least one token to read")
    columns = max(lengths) if width is None else width
    if columns < max(lengths):
        raise BadInputError(f"rows of {columns} tokens cannot hold a sequence of {max(lengths)}")
    input_ids = torch.full((len(sequences), columns), pad_id, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    for row, sequence in enumerate(sequences):
        place = slice(columns - len(sequence), columns) if left else slice(0, len(sequence))
        input_ids[row, place] = torch.as_tensor(sequence, dtype=torch.long)
        attention_mask[row, place] = 1
    position_ids = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
    return PaddedBatch(input_ids.to(device), attention_mask.to(device), position_ids.to(device))
