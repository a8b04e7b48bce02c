"""How a model behaves when nobody asks for a persona: sampled answers, judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from alignez_bake.errors import BadInputError
from alignez_bake.evaluation.rates import Rate, rate
from alignez_bake.language_model.sampling import sample

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alignez_bake.evaluation.judge import Judge
    from alignez_bake.language_model.loading import LanguageModel
    from alignez_bake.progress import Progress
    from alignez_bake.prompts.prompt_form import PromptForm
    from alignez_bake.prompts.queries import Query

ANSWER_TOKENS = 200


@dataclass(frozen=True)
class JudgedAnswers:
    """Answers with their scores.

    Attributes:
        answers: for each query its answers.
        scores: for each query the score of each of its answers, in [-1, 1]; good when above 0.
    """

    answers: tuple[tuple[str, ...], ...]
    scores: tuple[tuple[float, ...], ...]

    @property
    def good_rate(self) -> Rate:
        """Share of answers with a score above 0; the interval takes them as independent."""
        scores = [score for of_query in self.scores for score in of_query]
        return rate(sum(score > 0 for score in scores), len(scores))


def good_rate(
    lm: LanguageModel,
    queries: Sequence[Query],
    judge: Judge,
    prompt_form: PromptForm,
    *,
    samples: int = 1,
    seed: int,
    batch_size: int,
    max_new_tokens: int = ANSWER_TOKENS,
    sentence: str | None = None,
    progress: Progress | None = None,
) -> Rate:
    """Share of a model's own answers that a judge calls good.

    Args, errors: as `judged_answers`.
    """
    return judged_answers(
        lm,
        queries,
        judge,
        prompt_form,
        samples=samples,
        seed=seed,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        sentence=sentence,
        progress=progress,
    ).good_rate


def judged_answers(
    lm: LanguageModel,
    queries: Sequence[Query],
    judge: Judge,
    prompt_form: PromptForm,
    *,
    samples: int = 1,
    seed: int,
    batch_size: int,
    max_new_tokens: int = ANSWER_TOKENS,
    sentence: str | None = None,
    progress: Progress | None = None,
) -> JudgedAnswers:
    """Sample answers at temperature 1, without a persona unless given, and judge them.

    Args:
        lm: the model; run this inside `edited_by_hooks` for one that is not baked.
        queries: with the keys that the judge needs.
        judge: says how good an answer is, from -1 to 1.
        prompt_form: how queries become tokens.
        samples: answers to each query, at least 1.
        seed: of all samples.
        batch_size: answers that are sampled together.
        max_new_tokens: most tokens of an answer.
        sentence: of a persona to put before each query (`prompts.persona`): what asking for it would give.
        progress: counts answers.

    Raises:
        BadInputError: no query, no sample, or what `sample` and the judge refuse.
    """
    if not queries or samples < 1:
        raise BadInputError(f"nothing to judge: {len(queries)} queries, {samples} samples of each")
    contexts = [prompt_form.context_ids(query["query"], sentence) for query in queries for _ in range(samples)]
    generated = sample(lm, contexts, max_new_tokens=max_new_tokens, batch_size=batch_size, seed=seed, progress=progress)
    texts = [prompt_form.answer_text(ids) for ids in generated]
    answers = [tuple(texts[start : start + samples]) for start in range(0, len(texts), samples)]
    scores = [
        tuple(judge(query, answer) for answer in of_query) for query, of_query in zip(queries, answers, strict=True)
    ]
    return JudgedAnswers(tuple(answers), tuple(scores))
