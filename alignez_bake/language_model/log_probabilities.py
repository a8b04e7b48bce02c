"""Log-probabilities of given tokens: what tuning, evaluation and certificates read from a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from alignez_bake.errors import BadInputError
from alignez_bake.language_model.batching import length_sorted_batches, right_padded
from alignez_bake.language_model.logits import logits_of_columns

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from alignez_bake.language_model.loading import LanguageModel


class AnswerLogits(NamedTuple):
    """The next-token logits that predict one answer.

    Attributes:
        place: of the answer in the caller's list.
        logits: float32 [answer length, vocabulary], on the model's device; row t predicts token t.
    """

    place: int
    logits: torch.Tensor


def answer_log_probabilities(
    lm: LanguageModel, contexts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], *, batch_size: int
) -> list[torch.Tensor]:
    """log p(answer_t | context, answer_<t) for each token of each answer, in nats.

    Args:
        lm: the model.
        contexts: token ids, each with at least one.
        answers: as many lists of token ids, each with at least one; EOS is part of an answer that has it.
        batch_size: sequences that run together.

    Returns:
        For each answer, in the caller's order, a float32 tensor [answer length] on the CPU; all values <= 0.

    Raises:
        BadInputError: an empty context or answer, or one too long for the model.
    """
    results: list[torch.Tensor] = [torch.empty(0)] * len(answers)
    for index, logits in iter_answer_logits(lm, contexts, answers, batch_size=batch_size):
        targets = torch.as_tensor(answers[index], dtype=torch.long, device=logits.device)
        log_probabilities = torch.log_softmax(logits, dim=-1)
        results[index] = log_probabilities.gather(1, targets[:, None]).squeeze(1).cpu()
    return results


def iter_answer_logits(
    lm: LanguageModel, contexts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], *, batch_size: int
) -> Iterator[AnswerLogits]:
    """The logits that predict each answer, one answer at a time, so that float32 copies stay small.

    The head runs only at positions that predict some answer of the batch. The order depends on lengths alone:
    two models give it alike, so their iterators can be walked together.

    Args, errors: as `answer_log_probabilities`.
    """
    if len(contexts) != len(answers):
        raise BadInputError(f"{len(contexts)} contexts for {len(answers)} answers: each answer needs its own")
    for index, (context, answer) in enumerate(zip(contexts, answers, strict=True)):
        if not context or not answer:
            what = "context" if not context else "answer"
            raise BadInputError(f"{what} {index} is empty: it needs at least one token")
    sequences = [[*context, *answer] for context, answer in zip(contexts, answers, strict=True)]
    lm.check_fits(sequences)
    for indices in length_sorted_batches([len(sequence) for sequence in sequences], batch_size):
        batch = right_padded([sequences[index] for index in indices], lm.pad_id, lm.device)
        first = min(len(contexts[index]) for index in indices) - 1
        last = batch.input_ids.shape[1] - 1
        with torch.inference_mode():
            logits = logits_of_columns(lm.model, batch, first, last)
        for row, index in enumerate(indices):
            start = len(contexts[index]) - 1 - first
            yield AnswerLogits(index, logits[row, start : start + len(answers[index])].float())
