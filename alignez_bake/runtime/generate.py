"""Batched generation with left padding, greedy or sampled, whole or token by token."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from alignez_bake.errors import BadInputError
from alignez_bake.runtime.choose import chooser
from alignez_bake.runtime.decoder import Decoder

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from numpy.typing import NDArray

    from alignez_bake.runtime.choose import Chooser, Sampling
    from alignez_bake.runtime.session import OnnxModel


def generate(
    model: OnnxModel,
    contexts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_ids: Collection[int] = (),
    pad_id: int = 0,
    sampling: Sampling | None = None,
) -> list[list[int]]:
    """Continue each context once; all run in one batch.

    Args:
        model: the graph.
        contexts: token ids, each with at least one.
        max_new_tokens: most new tokens of an answer, at least 1.
        stop_ids: tokens that end an answer and are not part of it; none: every answer has `max_new_tokens`.
        pad_id: id at padding; any id of the vocabulary, since the mask hides it.
        sampling: how tokens are drawn; None: greedy.

    Returns:
        For each context, in order, the new token ids.

    Raises:
        BadInputError: no context, an empty one, an id out of the vocabulary, contexts of different lengths for a
            graph without attention_mask, a bound that is not kept, or what `Decoder.step` raises.
    """
    answers: list[list[int]] = [[] for _ in contexts]
    steps = stream(model, contexts, max_new_tokens=max_new_tokens, stop_ids=stop_ids, pad_id=pad_id, sampling=sampling)
    for tokens in steps:
        for answer, token in zip(answers, tokens, strict=True):
            if token is not None:
                answer.append(token)
    return answers


def stream(
    model: OnnxModel,
    contexts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_ids: Collection[int] = (),
    pad_id: int = 0,
    sampling: Sampling | None = None,
) -> Iterator[tuple[int | None, ...]]:
    """`generate`, one step at a time; arguments are checked at once, the graph runs as the steps are asked for.

    Args, errors: as `generate`.

    Returns:
        Steps: for each context its next token, None once its answer has ended. The last step has at least one.
    """
    if max_new_tokens < 1:
        raise BadInputError(f"max_new_tokens = {max_new_tokens}: at least one token must be generated")
    _check(model, contexts, pad_id)
    choose = chooser(sampling, len(contexts))
    return _steps(
        model,
        contexts,
        choose=choose,
        most=max_new_tokens,
        stops=np.array(sorted(stop_ids), dtype=np.int64),
        pad_id=pad_id,
    )


def _steps(
    model: OnnxModel,
    contexts: Sequence[Sequence[int]],
    *,
    choose: Chooser,
    most: int,
    stops: NDArray[np.int64],
    pad_id: int,
) -> Iterator[tuple[int | None, ...]]:
    """Rows that have ended stay in the batch with padding: taking them out would copy the cache of the others."""
    ids, mask = _left_padded(contexts, pad_id)
    positions = np.maximum(mask.cumsum(axis=1) - 1, 0)  # within the row's own range at padding
    seen = np.ones((len(contexts), 1), dtype=np.int64)
    ended = np.zeros(len(contexts), dtype=bool)
    decoder = Decoder(model, len(contexts))
    for step in range(most):
        chosen = choose(decoder.step({"input_ids": ids, "attention_mask": mask, "position_ids": positions}))
        ended |= (chosen[:, None] == stops).any(axis=1)
        if ended.all():
            return
        yield tuple(None if over else int(token) for over, token in zip(ended, chosen, strict=True))
        if step + 1 < most:
            ids = np.where(ended, pad_id, chosen)[:, None]
            mask = np.concatenate([mask, seen], axis=1)
            positions = positions[:, -1:] + 1


def _left_padded(contexts: Sequence[Sequence[int]], pad_id: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ids and mask [batch, length], padding first, so that the last column holds the last token of every row."""
    columns = max(map(len, contexts))
    ids = np.full((len(contexts), columns), pad_id, dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, context in enumerate(contexts):
        ids[row, columns - len(context) :] = context
        mask[row, columns - len(context) :] = 1
    return ids, mask


def _check(model: OnnxModel, contexts: Sequence[Sequence[int]], pad_id: int) -> None:
    if not contexts:
        raise BadInputError("a batch needs at least one context")
    lengths = [len(context) for context in contexts]
    if min(lengths) == 0:
        raise BadInputError(f"context {lengths.index(0)} is empty: the model needs at least one token to read")
    if "attention_mask" not in model.signature.tokens and min(lengths) != max(lengths):
        raise BadInputError(
            f"{model.path} takes no attention_mask, so contexts of {min(lengths)} and of {max(lengths)} tokens cannot "
            "share a batch: run those of one length together"
        )
    vocabulary = model.signature.vocabulary
    for token in {pad_id, *(token for context in contexts for token in context)}:
        if token < 0 or (vocabulary is not None and token >= vocabulary):
            bound = "below the vocabulary's" if vocabulary is None else f"below {vocabulary}"
            raise BadInputError(f"token id {token} is not in the vocabulary of {model.path}: 0 or more, and {bound}")
