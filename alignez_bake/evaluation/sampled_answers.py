"""Answers of several models to the same queries, drawn with common random numbers where that can be."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from alignez_bake.errors import BadInputError
from alignez_bake.language_model.answering import TorchAnswering
from alignez_bake.language_model.batching import length_sorted_batches
from alignez_bake.language_model.sampling import continued
from alignez_bake.progress import NoProgress
from alignez_bake.tuning.coupled_sampling import GumbelNoise

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from alignez_bake.language_model.answering import Answering
    from alignez_bake.language_model.loading import LanguageModel
    from alignez_bake.progress import Progress
    from alignez_bake.prompts.prompt_form import PromptForm
    from alignez_bake.prompts.queries import Query


def sampled_answers(
    model: Answering,
    queries: Sequence[Query],
    form: PromptForm,
    *,
    samples: int,
    max_new_tokens: int,
    temperature: float,
    batch_size: int,
    seed: int,
    progress: Progress | None = None,
) -> tuple[tuple[str, ...], ...]:
    """Some answers of a model to each query, without a persona.

    Models that torch runs, with one tokenizer and one vocabulary, draw from the same noise token by token (see
    `tuning.coupled_sampling`): where they predict alike they answer alike, and what is compared is the models, not
    their luck. Other runtimes draw their own.

    Args:
        model: what answers.
        queries: what it is asked.
        form: how queries become tokens; of the model's own tokenizer.
        samples: answers to each query.
        max_new_tokens: most tokens of an answer.
        temperature: 0 is greedy.
        batch_size: answers that run together.
        seed: of all samples; the same for all models.
        progress: counts answers.

    Returns:
        For each query its answers, as they were generated.

    Raises:
        BadInputError: a query that is too long for the model.
    """
    contexts = [form.context_ids(query["query"], None) for query in queries for _ in range(samples)]
    progress = progress or NoProgress()
    if isinstance(model, TorchAnswering) and temperature > 0:
        model.lm.check_fits(contexts, new_tokens=max_new_tokens)
        ids = _coupled(
            model.lm,
            contexts,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            batch_size=batch_size,
            seed=seed,
            progress=progress,
        )
    else:
        ids = model.continued(
            contexts,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            seed=seed,
            temperature=temperature,
            progress=progress,
        )
    texts = [form.answer_text(answer) for answer in ids]
    return tuple(tuple(texts[start : start + samples]) for start in range(0, len(texts), samples))


def check_sampling(*, samples: int, max_new_tokens: int, temperature: float, batch_size: int, seed: int) -> None:
    """Refuse settings of `sampled_answers` before anything is loaded.

    Raises:
        BadInputError: one of them is out of bounds.
    """
    for name, value, least in (
        ("--samples", samples, 1),
        ("--max-new-tokens", max_new_tokens, 1),
        ("--batch-size", batch_size, 1),
        ("--seed", seed, 0),
    ):
        if value < least:
            raise BadInputError(f"{name} {value} must be {least} or more")
    if not (math.isfinite(temperature) and temperature >= 0):
        raise BadInputError(f"--temperature {temperature} must be 0 (greedy) or a finite number above it")


def _coupled(
    lm: LanguageModel,
    contexts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float,
    batch_size: int,
    seed: int,
    progress: Progress,
) -> list[list[int]]:
    """Continue each context by argmax of logits / temperature + Gumbel noise of the context's own."""
    answers: list[list[int]] = [[] for _ in contexts]
    with progress.task("sampling answers", len(contexts)) as advance:
        for places in length_sorted_batches([len(context) for context in contexts], batch_size):
            noise = GumbelNoise(seed, places, lm.device)

            def choose(logits: torch.Tensor, rows: Sequence[int], noise: GumbelNoise = noise) -> torch.Tensor:
                return noise.step(rows, logits.shape[-1]).add_(logits / temperature).argmax(dim=-1)

            batch = continued(lm, [contexts[place] for place in places], choose, max_new_tokens)
            for place, answer in zip(places, batch, strict=True):
                answers[place] = answer.ids
            advance(len(places))
    return answers
