"""The base as judge of what an edited model answers: no labels, and no model but the base.

For a query x and an answer y (EOS included, where it ended the answer)

    reward     r = log p_base(y | x, good persona) - log p_base(y | x, bad persona)         sums over tokens, in nats
    coherence  f = mean over tokens of log p_base(y_t | x, good persona, y_<t)

r says whose answer it is, f whether it is one at all: an edit that is too strong writes text that the good persona
prefers to the bad one, but that neither would write. The floor of f is the 5th percentile over answers that the base
itself gives under the good persona. An answer is good if r > 0 and f >= floor; an empty answer is not. The persona
sentence is the one with an empty characteristic, "Your answer should be {good|bad}."

The share of good answers, the self-judged rate, is what edits are chosen by. Log-probabilities of given answers
mislead: that of good answers is highest at too gentle an edit, and the margin between good and bad ones still grows
when the model is broken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from alignez_bake.errors import BadInputError
from alignez_bake.language_model.log_probabilities import answer_log_probabilities
from alignez_bake.language_model.sampling import derived_seed
from alignez_bake.prompts.objective import SIDES
from alignez_bake.prompts.persona import persona_sentence
from alignez_bake.tuning.coupled_sampling import coupled_sample

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alignez_bake.language_model.loading import LanguageModel
    from alignez_bake.language_model.sampling import Continuation
    from alignez_bake.prompts.objective import Objective, Side
    from alignez_bake.prompts.prompt_form import PromptForm

FLOOR_PERCENTILE: Final = 5.0
FLOOR_ANSWERS: Final = 96


class SelfScore(NamedTuple):
    """What the base says of one answer: reward r in nats, coherence f in nats per token."""

    reward: float
    coherence: float


class SelfJudge:
    """The base's verdict for one objective.

    Call it outside of any context that edits the model: it is the base that judges.

    Attributes:
        objective: whose personas speak.
        wanted: the side that counts as good; `bad` where the dial of the objective is negative.
    """

    def __init__(
        self,
        lm: LanguageModel,
        objective: Objective,
        prompt_form: PromptForm,
        *,
        batch_size: int,
        wanted: Side = "good",
    ) -> None:
        """Judge by `lm`, with `batch_size` sequences a forward pass."""
        self.objective = objective
        self.wanted: Side = wanted
        self._lm = lm
        self._form = prompt_form
        self._batch_size = batch_size
        self._contexts: dict[tuple[str, Side], list[int]] = {}

    def check_fits(self, queries: Sequence[str], max_new_tokens: int) -> None:
        """Refuse queries that leave no room for an answer and its end, before anything runs.

        Raises:
            BadInputError: the longest query, persona and answer have more tokens than the model has positions.
        """
        contexts = [self._context(query, side) for query in queries for side in SIDES]
        self._lm.check_fits(contexts, new_tokens=max_new_tokens + 1)

    def scores(self, queries: Sequence[str], answers: Sequence[Continuation]) -> list[SelfScore | None]:
        """Reward and coherence of answers.

        Args:
            queries: text of each answer's query.
            answers: as they were sampled.

        Returns:
            One score an answer; None for an empty one.

        Raises:
            BadInputError: an answer too long for the model.
        """
        other = _opposite(self.wanted)
        places = [place for place, answer in enumerate(answers) if answer.ids]
        tokens = [_tokens(answers[place]) for place in places]
        contexts = [self._context(queries[place], side) for side in (self.wanted, other) for place in places]
        found = answer_log_probabilities(self._lm, contexts, tokens * 2, batch_size=self._batch_size)
        scores: list[SelfScore | None] = [None] * len(answers)
        for place, wanted, unwanted in zip(places, found[: len(places)], found[len(places) :], strict=True):
            good = wanted.double()
            scores[place] = SelfScore(float(good.sum() - unwanted.double().sum()), float(good.mean()))
        return scores

    def floor(self, queries: Sequence[str], *, seed: int, max_new_tokens: int, answers: int = FLOOR_ANSWERS) -> float:
        """The least coherence of a good answer: the 5th percentile over the base's own under the wanted persona.

        Args:
            queries: texts; answer k is to query k modulo their number.
            seed: of the base's answers.
            max_new_tokens: most tokens of an answer.
            answers: how many the base gives.

        Raises:
            BadInputError: the base answers nothing under that persona.
        """
        asked = [queries[number % len(queries)] for number in range(answers)]
        contexts = [self._context(query, self.wanted) for query in asked]
        sampled = coupled_sample(
            self._lm,
            contexts,
            range(answers),
            seed=derived_seed(seed, "floor", self.objective.name, self.wanted),
            max_new_tokens=max_new_tokens,
            batch_size=self._batch_size,
        )
        places = [place for place, answer in enumerate(sampled) if answer.ids]
        if not places:
            raise BadInputError(
                f"the base answers nothing when the {self.wanted} persona of objective {self.objective.name!r} is "
                "asked, so it cannot judge answers: use another prompt form or other queries"
            )
        found = answer_log_probabilities(
            self._lm,
            [contexts[place] for place in places],
            [_tokens(sampled[place]) for place in places],
            batch_size=self._batch_size,
        )
        return float(np.percentile([float(values.double().mean()) for values in found], FLOOR_PERCENTILE))

    def _context(self, query: str, side: Side) -> list[int]:
        key = (query, side)
        if key not in self._contexts:
            self._contexts[key] = self._form.context_ids(query, persona_sentence(self.objective, side))
        return self._contexts[key]


class FlooredJudge(NamedTuple):
    """A judge with the dial of its objective, which is not 0, and the floor of coherence."""

    judge: SelfJudge
    weight: float
    floor: float


@dataclass(frozen=True)
class JudgePanel:
    """The judges of all objectives together.

    With dials w_o, the value of an answer is the weighted mean of the verdicts,

        Σ_o |w_o| good_o / Σ_o |w_o|        good_o in {0, 1}

    and the self-judged rate is its mean over answers, within [0, 1]. A negative dial asks for less of its objective:
    there the bad persona takes the good one's part, in r (so good means r < 0 as the objective has it) and in f and
    its floor.
    """

    judges: tuple[FlooredJudge, ...]

    def values(self, queries: Sequence[str], answers: Sequence[Continuation]) -> list[float]:
        """The value of each answer, as the class says; arguments and errors as `SelfJudge.scores`."""
        total = sum(abs(weight) for _, weight, _ in self.judges)
        values = [0.0] * len(answers)
        for judge, weight, floor in self.judges:
            for place, score in enumerate(judge.scores(queries, answers)):
                if is_good(score, floor):
                    values[place] += abs(weight) / total
        return values


def is_good(score: SelfScore | None, floor: float) -> bool:
    """Whether an answer is the wanted persona's rather than the other's, and text that it would write."""
    return score is not None and score.reward > 0 and score.coherence >= floor


def wanted_side(weight: float) -> Side:
    """The persona that a dial asks for."""
    return "good" if weight > 0 else "bad"


def _opposite(side: Side) -> Side:
    return "bad" if side == "good" else "good"


def _tokens(answer: Continuation) -> list[int]:
    return answer.ids if answer.end is None else [*answer.ids, answer.end]
