"""What an edit does to text that it should leave alone: loss on documents, divergence on neutral texts."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch

from alignez_bake.errors import BadInputError
from alignez_bake.language_model.log_probabilities import answer_log_probabilities, iter_answer_logits

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager
    from typing import Any

    from alignez_bake.language_model.loading import LanguageModel
    from alignez_bake.prompts.prompt_form import PromptForm


def answer_loss(
    lm: LanguageModel, documents: Sequence[Mapping[str, Any]], prompt_form: PromptForm, *, batch_size: int
) -> float:
    """Mean loss of the answers of documents, in nats per token: -log p(token | query, answer so far).

    Args:
        lm: the model.
        documents: with the keys `query` and `answer`; an answer keeps its leading space.
        prompt_form: how they become tokens; EOS ends each answer, if the tokenizer has one, and counts.
        batch_size: documents that run together.

    Raises:
        BadInputError: no document, a key that is missing, an empty answer, or a document that is too long.
    """
    if not documents:
        raise BadInputError("no documents to measure the loss on")
    for number, document in enumerate(documents, start=1):
        if not all(isinstance(document.get(key), str) for key in ("query", "answer")):
            raise BadInputError(f"document {number} needs text under the keys 'query' and 'answer'")
        if not document["answer"]:
            raise BadInputError(f"document {number} has an empty answer")
    losses = answer_log_probabilities(
        lm,
        [prompt_form.context_ids(document["query"], None) for document in documents],
        [prompt_form.answer_ids(document["answer"], eos=True) for document in documents],
        batch_size=batch_size,
    )
    return -float(torch.cat(losses).double().mean())


def kl_on_texts(
    base: LanguageModel,
    edited: LanguageModel,
    texts: Sequence[str],
    prompt_form: PromptForm,
    *,
    batch_size: int,
    editing: Callable[[], AbstractContextManager[object]] = nullcontext,
    editing_base: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> float:
    """Mean KL(base || edited) of the next-token distributions, in nats per token, on texts.

    The mean runs over all tokens that follow another: at each, how far the edited model's prediction is from the
    base's. Token by token only one float32 copy of one text's logits is alive for each model.

    Args:
        base: the model before.
        edited: the model after; the same object as `base` where `editing` makes the difference.
        texts: neutral ones; each gets one BOS, if the tokenizer has one.
        prompt_form: how texts become tokens.
        batch_size: texts that run together.
        editing: entered whenever `edited` runs, such as `lambda: edited_by_hooks(model, architecture, plan)`.
        editing_base: likewise for `base`, where one edit is compared with another.

    Raises:
        BadInputError: no text with at least two tokens, models with different vocabularies, or a text too long.
    """
    if base.vocabulary_size != edited.vocabulary_size:
        raise BadInputError(
            f"models of {base.vocabulary_size} and {edited.vocabulary_size} tokens cannot be compared token by token"
        )
    contexts, answers = first_and_rest(texts, prompt_form)
    before = iter_answer_logits(base, contexts, answers, batch_size=batch_size)
    after = iter_answer_logits(edited, contexts, answers, batch_size=batch_size)
    total, tokens = 0.0, 0
    for _ in answers:
        with editing_base():
            p = torch.log_softmax(next(before).logits, dim=-1)
        with editing():
            q = torch.log_softmax(next(after).logits.to(p.device), dim=-1)
        total += summed_kl(p, q)
        tokens += p.shape[0]
    return total / tokens


def first_and_rest(texts: Sequence[str], prompt_form: PromptForm) -> tuple[list[list[int]], list[list[int]]]:
    """The first token of each text and those that follow it; texts of one token are left out.

    Raises:
        BadInputError: no text with at least two tokens.
    """
    sequences = [ids for ids in map(prompt_form.text_ids, texts) if len(ids) > 1]
    if not sequences:
        raise BadInputError(f"none of {len(texts)} texts has two tokens: there is nothing to compare")
    return [ids[:1] for ids in sequences], [ids[1:] for ids in sequences]


def summed_kl(p: torch.Tensor, q: torch.Tensor) -> float:
    """Σ_t KL(p_t || q_t) in nats, of log-probabilities [tokens, vocabulary]."""
    return float((p.exp() * (p - q)).sum(dim=-1).double().sum())
