"""What a model answers to queries, and which queries stand in the report and the model card."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from alignez_bake.language_model.answering import TorchAnswering
from alignez_bake.language_model.loading import has_tokenizer, load_language_model
from alignez_bake.prompts.prompt_form import prompt_form
from alignez_bake.prompts.queries import shipped_queries

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alignez_bake.edit_plan import EditPlan
    from alignez_bake.exporters.protocol import RunningResult
    from alignez_bake.language_model.answering import Answering
    from alignez_bake.model_folder import ModelFolder
    from alignez_bake.progress import Progress

SAMPLES: Final = 8
"""Of each result; the model card shows the first of them."""
_SAMPLE_TOKENS: Final = 60


def answers(
    model: Answering,
    queries: Sequence[str],
    *,
    template: str | None,
    max_new_tokens: int,
    batch_size: int,
    seed: int = 0,
    temperature: float = 0.0,
    progress: Progress | None = None,
) -> list[str]:
    """One answer to each query, without a persona.

    Args:
        model: what answers.
        queries: what it is asked.
        template: how a query becomes a prompt; see `prompts.prompt_form`.
        max_new_tokens: most tokens of an answer.
        batch_size: queries that run together.
        seed: of the samples.
        temperature: 0 is greedy.
        progress: counts answers.

    Raises:
        BadInputError: a prompt that is too long for the model, or a template that does not work.
    """
    form = prompt_form(model.tokenizer, template)
    contexts = [form.context_ids(query, None) for query in queries]
    sampled = model.continued(
        contexts,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        seed=seed,
        temperature=temperature,
        progress=progress,
    )
    return [form.answer_text(ids).strip() for ids in sampled]


def recorded_template(plan: EditPlan) -> str | None:
    """The template that edits were fitted with; None: a chat template, or nobody knows."""
    form = plan.provenance.get("prompt_form")
    template = form.get("template") if isinstance(form, dict) else None
    return template if isinstance(template, str) else None


def samples_of(
    base: ModelFolder,
    result: RunningResult,
    plan: EditPlan,
    queries: Sequence[str],
    *,
    device: str,
    batch_size: int,
    trust_remote_code: bool,
) -> list[tuple[str, str, str]]:
    """Queries with the base's greedy answer and the artefact's; none without a tokenizer.

    Answers are cut to what the model has positions for, since a report is no place to fail.

    Args:
        base: the base.
        result: the artefact, reloaded from disk.
        plan: the edits, which record the prompt form.
        queries: the first of them are asked; of the shipped ones unless given.
        device: where the base runs.
        batch_size: queries that run together.
        trust_remote_code: passed to transformers' loader.
    """
    if not has_tokenizer(base.path):
        return []
    objective = plan.objectives[0] if plan.objectives else ""
    asked = list(queries or [query["query"] for query in shipped_queries(objective)])[:SAMPLES]
    template = recorded_template(plan)
    aligned = result.answering()
    form = prompt_form(aligned.tokenizer, template)
    longest = max(len(form.context_ids(query, None)) for query in asked)
    room = aligned.positions or longest + _SAMPLE_TOKENS
    tokens = min(_SAMPLE_TOKENS, room - longest)
    if tokens < 1:
        return []
    original = TorchAnswering(load_language_model(base, device=device, trust_remote_code=trust_remote_code))
    before, after = (
        answers(model, asked, template=template, max_new_tokens=tokens, batch_size=batch_size)
        for model in (original, aligned)
    )
    return list(zip(asked, before, after, strict=True))
