"""Answers sampled with common random numbers, so that two edits are compared on the same luck.

A token is sampled from logits l [vocabulary] as argmax_i (l_i + g_i) with independent Gumbel noise g_i: the
Gumbel-max trick. With g_i = -log e_i, e_i exponential, that is argmax_i (l_i - log e_i).

The noise of an answer comes from a generator of its own, seeded by (seed, number of the answer), which gives one
vector [vocabulary] a step. So it depends on seed, answer and step alone, and neither on the model nor on what else
runs in the batch. Two models that predict alike then sample alike, and where they differ in total variation by t,
they sample the same token with probability at least (1 - t)/(1 + t). The variance of a difference of two rates is
that of the answers that came out different, not that of all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from alignez_bake.errors import BadInputError
from alignez_bake.language_model.batching import length_sorted_batches
from alignez_bake.language_model.sampling import Continuation, continued, derived_seed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alignez_bake.language_model.loading import LanguageModel


class GumbelNoise:
    """Standard Gumbel noise for the answers of one batch.

    State: one generator an answer (2.5 KB on the CPU), and the noise of one step, 4 bytes a row and token.
    """

    def __init__(self, seed: int, answers: Sequence[int], device: torch.device) -> None:
        """Noise for answers of these numbers; each step of an answer takes the next vector of its generator."""
        self._generators = [
            torch.Generator(device).manual_seed(derived_seed(seed, "gumbel", answer)) for answer in answers
        ]

    def step(self, rows: Sequence[int], vocabulary: int) -> torch.Tensor:
        """The noise of the next step of some answers.

        Args:
            rows: places in the list of answers.
            vocabulary: size of the vocabulary, the same at every step.

        Returns:
            float32 [rows, vocabulary] on the generators' device.
        """
        noise = torch.empty(len(rows), vocabulary, device=self._generators[0].device)
        for place, row in enumerate(rows):
            noise[place].exponential_(generator=self._generators[row])
        return noise.log_().neg_()


def coupled_sample(
    lm: LanguageModel,
    contexts: Sequence[Sequence[int]],
    answers: Sequence[int],
    *,
    seed: int,
    max_new_tokens: int,
    batch_size: int,
) -> list[Continuation]:
    """Continue each context once, at temperature 1 and from the whole distribution.

    Args:
        lm: the model; its hooks act.
        contexts: token ids, each with at least one; contexts of like length run together.
        answers: number of each context's answer, 0 or more: what its noise depends on, beside the seed.
        seed: of all answers.
        max_new_tokens: most new tokens of an answer, at least 1.
        batch_size: contexts that run together. It changes nothing but the rounding of the logits.

    Returns:
        For each context, in the caller's order, the new token ids and what ended them.

    Raises:
        BadInputError: an empty context, one too long for the model, or a setting out of bounds.
    """
    if max_new_tokens < 1:
        raise BadInputError(f"max_new_tokens = {max_new_tokens}: at least one token must be generated")
    lm.check_fits(contexts, new_tokens=max_new_tokens)
    sampled = [Continuation([], None)] * len(contexts)
    for batch in length_sorted_batches([len(context) for context in contexts], batch_size):
        noise = GumbelNoise(seed, [answers[index] for index in batch], lm.device)

        def choose(logits: torch.Tensor, rows: Sequence[int], noise: GumbelNoise = noise) -> torch.Tensor:
            return noise.step(rows, logits.shape[-1]).add_(logits).argmax(dim=-1)

        found = continued(lm, [contexts[index] for index in batch], choose, max_new_tokens)
        for index, continuation in zip(batch, found, strict=True):
            sampled[index] = continuation
    return sampled
