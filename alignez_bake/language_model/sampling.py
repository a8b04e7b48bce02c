"""Batched generation with left padding: the same call gives the same result, and global state stays as it was."""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import torch
from transformers import GenerationConfig

from alignez_bake.errors import BadInputError
from alignez_bake.language_model.batching import left_padded, length_sorted_batches
from alignez_bake.language_model.kv_cache import cache_name
from alignez_bake.progress import NoProgress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from transformers import PreTrainedModel

    from alignez_bake.language_model.loading import LanguageModel
    from alignez_bake.progress import Progress

    Choose = Callable[[torch.Tensor, Sequence[int]], torch.Tensor]

_FULL_ENOUGH: Final = 7 / 8
"""Share of a batch's rows that still write, below which the others are taken out; taking out copies the cache."""


class Continuation(NamedTuple):
    """What a context was continued with.

    Attributes:
        ids: the new token ids, without what ended them; may be empty.
        end: the id that ended the answer; None: it has as many tokens as it may have.
    """

    ids: list[int]
    end: int | None


class SampledBatch(NamedTuple):
    """What one batch gave.

    Attributes:
        indices: places of its contexts in the caller's list.
        answers: for each of them the new token ids, without EOS and what follows it; may be empty.
    """

    indices: list[int]
    answers: list[list[int]]


def sample(
    lm: LanguageModel,
    contexts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    seed: int,
    temperature: float = 1.0,
    greedy: bool = False,
    progress: Progress | None = None,
) -> list[list[int]]:
    """Continue each context once.

    Sampling is from the model's own distribution: no top-k, no top-p, no penalties, whatever the model's
    generation config says (AlignEZ, arXiv 2406.03642, samples so).

    Args:
        lm: the model.
        contexts: token ids, each with at least one; contexts of like length run together.
        max_new_tokens: most new tokens of an answer, at least 1.
        batch_size: contexts that run together; another batch size gives other samples.
        seed: of all samples, 0 or more.
        temperature: above 0.
        greedy: the likeliest token instead of a sample; seed and temperature then mean nothing.
        progress: counts contexts.

    Returns:
        For each context, in the caller's order, the new token ids, without EOS and what follows it.

    Raises:
        BadInputError: an empty context, one too long for the model, or a setting out of bounds.
    """
    results: list[list[int]] = [[] for _ in contexts]
    with (progress or NoProgress()).task("sampling answers", len(contexts)) as advance:
        for batch in iter_sampled_batches(
            lm,
            contexts,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            seed=seed,
            temperature=temperature,
            greedy=greedy,
        ):
            for index, answer in zip(batch.indices, batch.answers, strict=True):
                results[index] = answer
            advance(len(batch.indices))
    return results


def iter_sampled_batches(
    lm: LanguageModel,
    contexts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    seed: int,
    temperature: float = 1.0,
    greedy: bool = False,
) -> Iterator[SampledBatch]:
    """`sample`, one batch at a time, the longest contexts first.

    Args, errors: as `sample`.
    """
    for number, indices in enumerate(length_sorted_batches([len(context) for context in contexts], batch_size)):
        answers = sample_batch(
            lm,
            [contexts[index] for index in indices],
            max_new_tokens=max_new_tokens,
            seed=derived_seed(seed, "sample", number),
            temperature=temperature,
            greedy=greedy,
        )
        yield SampledBatch(indices, answers)


def sample_batch(
    lm: LanguageModel,
    contexts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    seed: int,
    temperature: float = 1.0,
    greedy: bool = False,
) -> list[list[int]]:
    """Continue the contexts in one batch, in the given order.

    Args, returns, errors: as `sample`; `seed` is the batch's own.
    """
    if max_new_tokens < 1:
        raise BadInputError(f"max_new_tokens = {max_new_tokens}: at least one token must be generated")
    if not greedy and not (0 < temperature < float("inf")):
        raise BadInputError(
            f"temperature {temperature} must be a finite number above 0 (greedy is a switch of its own)"
        )
    lm.check_fits(contexts, new_tokens=max_new_tokens)
    generator = torch.Generator(lm.device).manual_seed(seed)

    def choose(logits: torch.Tensor, _contexts: Sequence[int]) -> torch.Tensor:
        if greedy:
            return logits.argmax(dim=-1)
        probabilities = torch.softmax(logits.float() / temperature, dim=-1)
        return torch.multinomial(probabilities, 1, generator=generator)[:, 0]

    return [continuation.ids for continuation in continued(lm, contexts, choose, max_new_tokens)]


@torch.inference_mode()
def continued(lm: LanguageModel, contexts: Sequence[Sequence[int]], choose: Choose, most: int) -> list[Continuation]:
    """Continue contexts in one batch, token by token, until every answer has ended or has `most` tokens.

    Answers that have ended leave the batch: lengths differ so much that this saves a quarter of the time on small
    models, and more where few answers go on to the limit.

    Args:
        lm: the model.
        contexts: token ids, each with at least one.
        choose: the next token of each row, int64 [rows], from the logits [rows, vocabulary] and the place in
            `contexts` of what each row continues. Rows that have ended may be among them; what is chosen there
            counts for nothing.
        most: most new tokens, at least 1.
    """
    answers = [Continuation([], None) for _ in contexts]
    ends = set(lm.eos_ids)
    ids, mask, positions = left_padded(contexts, lm.pad_id, lm.device)
    rows = list(range(len(contexts)))  # the answer that each row writes
    cache, name = None, cache_name(lm.model)
    for _ in range(most):
        output = lm.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            logits_to_keep=1,
            **{name: cache},
        )
        cache = output[name]
        chosen = choose(output.logits[:, -1], rows)
        for answer, token in zip(rows, chosen.tolist(), strict=True):
            if answers[answer].end is not None:
                continue
            if token in ends:
                answers[answer] = answers[answer]._replace(end=token)
            else:
                answers[answer].ids.append(token)
        kept = [row for row, answer in enumerate(rows) if answers[answer].end is None]
        if not kept:
            break
        ids, positions = chosen[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(mask.shape[0], 1)], dim=1)
        if len(kept) <= _FULL_ENOUGH * len(rows) and hasattr(cache, "batch_select_indices"):
            index = torch.tensor(kept, device=lm.device)
            cache.batch_select_indices(index)
            ids, positions, mask = ids[index], positions[index], mask[index]
            rows = [rows[row] for row in kept]
    return answers


def derived_seed(seed: int, *path: str | int) -> int:
    """A seed for one part of a run, the same on every machine and unlike that of every other part.

    Args:
        seed: the run's seed, 0 or more.
        path: names and numbers that say which part.

    Returns:
        A number of 63 bits, fit for torch and for JSON.

    Raises:
        BadInputError: a negative seed.
    """
    if seed < 0:
        raise BadInputError(f"seed {seed} must be 0 or more")
    words = [
        part if isinstance(part, int) else int.from_bytes(hashlib.sha256(part.encode()).digest()[:8], "little")
        for part in path
    ]
    state = np.random.SeedSequence([seed, *words]).generate_state(1, np.uint64)
    return int(state[0]) >> 1


@contextmanager
def no_inherited_settings(model: PreTrainedModel) -> Iterator[None]:
    """`generate` fills what a config leaves open from the model's own, penalties included: put it aside."""
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own
