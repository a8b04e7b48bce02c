"""What a plan is worth: the edited model answers held-out queries, and the base judges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from alignez_bake.lowering.hooks import edited_by_hooks
from alignez_bake.tuning.coupled_sampling import coupled_sample

if TYPE_CHECKING:
    from alignez_bake.edit_plan import EditPlan
    from alignez_bake.language_model.loading import LanguageModel
    from alignez_bake.prompts.prompt_form import PromptForm
    from alignez_bake.tuning.self_judge import JudgePanel


@dataclass(frozen=True)
class JudgedSampling:
    """Answers without a persona, with the same random numbers for every plan, and their values.

    Attributes:
        lm: the base.
        queries: texts; answer k is to query k modulo their number.
        prompt_form: how queries become tokens.
        panel: the base's verdicts.
        seed: of all answers.
        batch_size: texts that run together.
        max_new_tokens: most tokens of an answer.
    """

    lm: LanguageModel
    queries: tuple[str, ...]
    prompt_form: PromptForm
    panel: JudgePanel
    seed: int
    batch_size: int
    max_new_tokens: int

    def __call__(self, plan: EditPlan, answers: range) -> list[float]:
        """The values, within [0, 1], of the answers of these numbers.

        Args:
            plan: what is edited; an empty one is the base.
            answers: their numbers. An answer does not depend on which others are asked for with it, up to rounding.

        Raises:
            BadInputError: a site that the model does not have, or a query too long for it.
        """
        queries = [self.queries[number % len(self.queries)] for number in answers]
        contexts = [self.prompt_form.context_ids(query, None) for query in queries]
        with edited_by_hooks(self.lm.model, self.lm.architecture, plan):
            sampled = coupled_sample(
                self.lm,
                contexts,
                answers,
                seed=self.seed,
                max_new_tokens=self.max_new_tokens,
                batch_size=self.batch_size,
            )
        # Outside of that context: it is the base that judges.
        return self.panel.values(queries, sampled)
