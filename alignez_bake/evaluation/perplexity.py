"""How well a model predicts text that nobody asked it to change."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from alignez_bake.evaluation.drift import first_and_rest
from alignez_bake.language_model.log_probabilities import answer_log_probabilities

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alignez_bake.language_model.loading import LanguageModel
    from alignez_bake.prompts.prompt_form import PromptForm


def perplexity_on_texts(lm: LanguageModel, texts: Sequence[str], prompt_form: PromptForm, *, batch_size: int) -> float:
    """exp of the mean of -log p(token | those before it), over all tokens that follow another.

    Of models with one tokenizer, figures on the same texts can be compared; of others they count other tokens.

    Args:
        lm: the model.
        texts: each gets one BOS, if the tokenizer has one.
        prompt_form: how texts become tokens.
        batch_size: texts that run together.

    Returns:
        At least 1; not finite where the predictions of a broken model are not.

    Raises:
        BadInputError: no text with at least two tokens, or one that is too long.
    """
    contexts, rests = first_and_rest(texts, prompt_form)
    found = answer_log_probabilities(lm, contexts, rests, batch_size=batch_size)
    return float(torch.cat(found).double().mean().neg().exp())
