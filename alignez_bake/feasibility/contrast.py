"""How the personas see given answers: the base's own likelihoods, read once for everything that is asked of them.

For a query x and an answer y of T tokens, with p the base and w, o the wanted and the other persona,

    reward     r = log p(y | x, w) - log p(y | x, o)          in nats, as `tuning.self_judge` has it
    lead       l = log p(y | x, w) - log p(y | x)             in nats: the same against no persona at all
    divergence   = mean over t of JSD( p(. | x, w, y_<t), p(. | x, o, y_<t) )      in nats, within [0, ln 2]
    variation    = mean over t of ½ Σ_v | p(v | x, w, y_<t) - p(v | x, o, y_<t) |  within [0, 1]

The persona sentences are those with an empty characteristic.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple

import torch

from alignez_bake.capture.memory import DEFAULT_MEMORY_BYTES, logits_bytes
from alignez_bake.capture.sizes import cut_batches
from alignez_bake.capture.weights import jensen_shannon
from alignez_bake.errors import BadInputError
from alignez_bake.language_model.batching import length_sorted_batches
from alignez_bake.language_model.log_probabilities import iter_answer_logits
from alignez_bake.prompts.persona import persona_sentence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alignez_bake.language_model.loading import LanguageModel
    from alignez_bake.prompts.objective import Objective, Side
    from alignez_bake.prompts.prompt_form import PromptForm

_LOGITS_COPIES: Final = 4
"""Those of three contexts, and what those of one are cut out of."""
_FLOAT32: Final = 4


class AnswerReading(NamedTuple):
    """What the module says of one answer.

    Attributes:
        reward: r.
        lead: l; None where the answer was not read without a persona.
        divergence: mean JSD.
        variation: mean total variation.
    """

    reward: float
    lead: float | None
    divergence: float
    variation: float


class PersonaContrast(NamedTuple):
    """Reads answers as two personas would have given them.

    Attributes:
        lm: the base.
        objective: whose personas.
        form: how queries become tokens.
        wanted: the persona that an edit is to make permanent; `bad` where the dial of the objective is negative.
        batch_size: sequences a forward pass.
    """

    lm: LanguageModel
    objective: Objective
    form: PromptForm
    wanted: Side
    batch_size: int

    @property
    def other(self) -> Side:
        """The persona that is not wanted."""
        return "bad" if self.wanted == "good" else "good"

    def context(self, query: str, side: Side | None) -> list[int]:
        """Token ids that an answer is appended to, under one persona or none."""
        return self.form.context_ids(query, None if side is None else persona_sentence(self.objective, side))

    def read(self, queries: Sequence[str], answers: Sequence[Sequence[int]], *, plain: bool) -> list[AnswerReading]:
        """Read answers under both personas.

        Args:
            queries: text of each answer's query.
            answers: token ids of each answer, with the one that ended it where it is known; at least one each.
            plain: read them without a persona as well, for `lead`.

        Raises:
            BadInputError: an answer too long for the model, or predictions that are not finite.
        """
        sides: list[Side | None] = [self.wanted, self.other, *([None] if plain else [])]
        contexts = [[self.context(query, side) for query in queries] for side in sides]
        found: list[AnswerReading | None] = [None] * len(answers)
        lengths = [len(context) + len(answer) for context, answer in zip(contexts[0], answers, strict=True)]
        sizes = [_LOGITS_COPIES * _FLOAT32 * self.lm.vocabulary_size * len(answer) for answer in answers]
        batches = length_sorted_batches(lengths, self.batch_size)
        for batch in cut_batches(batches, sizes, logits_bytes(DEFAULT_MEMORY_BYTES)):
            tokens = [answers[place] for place in batch]
            logits = [self._logits([of_side[place] for place in batch], tokens) for of_side in contexts]
            for row, place in enumerate(batch):
                found[place] = _reading([of_side[row] for of_side in logits], tokens[row])
        readings = [reading for reading in found if reading is not None]
        assert len(readings) == len(answers)
        if not all(map(math.isfinite, (value for reading in readings for value in reading if value is not None))):
            raise BadInputError("the model's predictions are not finite: its weights or its dtype are broken")
        return readings

    def _logits(self, contexts: Sequence[list[int]], answers: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """Of each answer, in the order given: which order they run in depends on the lengths of their contexts."""
        rows = {
            found.place: found.logits
            for found in iter_answer_logits(self.lm, contexts, answers, batch_size=len(answers))
        }
        return [rows[place] for place in range(len(answers))]


def _reading(logits: Sequence[torch.Tensor], tokens: Sequence[int]) -> AnswerReading:
    targets = torch.as_tensor(tokens, dtype=torch.long, device=logits[0].device)[:, None]
    logs = [rows.log_softmax(dim=-1) for rows in logits]
    sums = [float(rows.gather(1, targets).double().sum()) for rows in logs]
    # Log-probabilities are logits too: they differ from those by a constant of each row.
    divergence = jensen_shannon(logs[0], logs[1])
    variation = 0.5 * (logs[0].exp() - logs[1].exp()).abs().sum(dim=-1)
    return AnswerReading(
        reward=sums[0] - sums[1],
        lead=sums[0] - sums[2] if len(sums) > 2 else None,
        divergence=float(divergence.double().mean()),
        variation=min(1.0, float(variation.double().mean())),
    )
