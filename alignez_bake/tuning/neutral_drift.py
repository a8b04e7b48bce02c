"""How far each candidate moves neutral texts: `evaluation.drift`, with the base's half kept between candidates."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

import torch

from alignez_bake.errors import BadInputError
from alignez_bake.evaluation.drift import first_and_rest, kl_on_texts, summed_kl
from alignez_bake.language_model.log_probabilities import answer_log_probabilities, iter_answer_logits
from alignez_bake.lowering.hooks import edited_by_hooks
from alignez_bake.tuning.neutral import read_neutral_texts

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from alignez_bake.edit_plan import EditPlan
    from alignez_bake.language_model.loading import LanguageModel
    from alignez_bake.prompts.prompt_form import PromptForm

_MOST_BYTES: Final = 256 * 1024 * 1024


class NeutralDrift:
    """Mean KL(base || edited) in nats per token on texts, for one plan after another.

    The base's log-probabilities are kept, 4 bytes a token and entry of the vocabulary, if that is at most 256 MiB:
    3000 tokens at a vocabulary of 22 000. Else nothing is kept, and the base runs again for every plan.
    """

    def __init__(
        self,
        lm: LanguageModel,
        texts: Sequence[str],
        prompt_form: PromptForm,
        *,
        batch_size: int,
        most_bytes: int = _MOST_BYTES,
    ) -> None:
        """Measure on these texts; each gets one BOS, if the tokenizer has one.

        Raises:
            BadInputError: no text with at least two tokens, or one too long for the model.
        """
        self._lm = lm
        self._texts = tuple(texts)
        self._form = prompt_form
        self._batch_size = batch_size
        self._firsts, self._rests = first_and_rest(texts, prompt_form)
        lm.check_fits([[*first, *rest] for first, rest in zip(self._firsts, self._rests, strict=True)])
        self._tokens = sum(map(len, self._rests))
        self._kept = 4 * self._tokens * lm.vocabulary_size <= most_bytes
        self._before: list[tuple[int, torch.Tensor]] | None = None

    def __call__(self, plan: EditPlan) -> float:
        """The drift of one plan; may be NaN where the edited model's predictions are not finite.

        Raises:
            BadInputError: a site that the model does not have.
        """
        editing = partial(edited_by_hooks, self._lm.model, self._lm.architecture, plan)
        if not self._kept:
            return kl_on_texts(
                self._lm, self._lm, self._texts, self._form, batch_size=self._batch_size, editing=editing
            )
        before = self._of_base()
        with editing():
            after = self._log_probabilities()
            return (
                sum(summed_kl(kept, found) for (_, kept), (_, found) in zip(before, after, strict=True)) / self._tokens
            )

    def base_loss(self) -> float:
        """The base's own loss on the texts: the mean of -log p(token) over all tokens that follow another, in nats."""
        if not self._kept:
            found = answer_log_probabilities(self._lm, self._firsts, self._rests, batch_size=self._batch_size)
            return -float(torch.cat(found).double().mean())
        total = 0.0
        for place, predicted in self._of_base():
            tokens = torch.as_tensor(self._rests[place], dtype=torch.long, device=predicted.device)
            total -= float(predicted.gather(1, tokens[:, None]).double().sum())
        return total / self._tokens

    def _of_base(self) -> list[tuple[int, torch.Tensor]]:
        """What `_log_probabilities` gives without edits, kept; ask for it outside of any context that edits."""
        if self._before is None:
            self._before = list(self._log_probabilities())
        return self._before

    def _log_probabilities(self) -> Iterator[tuple[int, torch.Tensor]]:
        """Of each text its place and [tokens, vocabulary], in an order that depends on lengths alone."""
        for place, logits in iter_answer_logits(self._lm, self._firsts, self._rests, batch_size=self._batch_size):
            yield place, torch.log_softmax(logits, dim=-1)


def check_neutral(lm: LanguageModel, path: Path | None, form: PromptForm, *, fewest: int = 1) -> None:
    """Refuse a user's neutral texts on which nothing can be measured, before the long work.

    Args:
        lm: the base.
        path: the file; None: there is none.
        form: how texts become tokens.
        fewest: how many are needed; 2 where some are seen in any case.

    Raises:
        BadInputError: as `read_neutral_texts`; too few texts, or one too long for the model.
    """
    if path is None:
        return
    texts = read_neutral_texts(path, form)
    if len(texts) < fewest:
        raise BadInputError(
            f"{path} holds {len(texts)} neutral text: give at least {fewest}, since the fit sees every second one and "
            "the others measure"
        )
    NeutralDrift(lm, texts, form, batch_size=1)
