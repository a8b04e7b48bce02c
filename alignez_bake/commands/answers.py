"""What a model answers to queries, and which queries stand in a model card."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from alignez_bake.language_model.loading import LanguageModel, has_tokenizer, load_language_model, tokenizer_of
from alignez_bake.language_model.sampling import sample
from alignez_bake.prompts.prompt_form import prompt_form
from alignez_bake.prompts.queries import shipped_queries

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alignez_bake.edit_plan import EditPlan
    from alignez_bake.language_model.loading import LoadedModel
    from alignez_bake.model_folder import ModelFolder
    from alignez_bake.progress import Progress

CARD_SAMPLES: Final = 3
_CARD_TOKENS: Final = 60


def answers(
    lm: LanguageModel,
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
        lm: the model.
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
    form = prompt_form(lm.tokenizer, template)
    contexts = [form.context_ids(query, None) for query in queries]
    lm.check_fits(contexts, new_tokens=max_new_tokens)
    sampled = sample(
        lm,
        contexts,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        seed=seed,
        temperature=temperature or 1.0,
        greedy=temperature == 0,
        progress=progress,
    )
    return [form.answer_text(ids).strip() for ids in sampled]


def recorded_template(plan: EditPlan) -> str | None:
    """The template that edits were fitted with; None: a chat template, or nobody knows."""
    form = plan.provenance.get("prompt_form")
    template = form.get("template") if isinstance(form, dict) else None
    return template if isinstance(template, str) else None


def artefact_model(base: ModelFolder, loaded: LoadedModel, *, trust_remote_code: bool) -> LanguageModel:
    """A reloaded artefact with its base's tokenizer."""
    tokenizer = tokenizer_of(base.path, trust_remote_code=trust_remote_code)
    return LanguageModel(loaded.model, tokenizer, base.architecture, base, loaded.model.device, loaded.unused_keys)


def card_samples(
    base: ModelFolder,
    loaded: LoadedModel,
    plan: EditPlan,
    queries: Sequence[str],
    *,
    device: str,
    batch_size: int,
    trust_remote_code: bool,
) -> list[tuple[str, str, str]]:
    """Queries with the base's greedy answer and the artefact's, for a model card; none without a tokenizer.

    Answers are cut to what the model has positions for, since the card is no place to fail.

    Args:
        base: the base.
        loaded: the artefact, reloaded from disk.
        plan: the edits, which record the prompt form.
        queries: the first of them are asked; of the shipped ones unless given.
        device: where the base runs.
        batch_size: queries that run together.
        trust_remote_code: passed to transformers' loader.
    """
    if not has_tokenizer(base.path):
        return []
    objective = plan.objectives[0] if plan.objectives else ""
    asked = list(queries or [query["query"] for query in shipped_queries(objective)])[:CARD_SAMPLES]
    template = recorded_template(plan)
    aligned = artefact_model(base, loaded, trust_remote_code=trust_remote_code)
    form = prompt_form(aligned.tokenizer, template)
    longest = max(len(form.context_ids(query, None)) for query in asked)
    room = getattr(loaded.model.config, "max_position_embeddings", None) or longest + _CARD_TOKENS
    tokens = min(_CARD_TOKENS, room - longest)
    if tokens < 1:
        return []
    original = load_language_model(base, device=device, trust_remote_code=trust_remote_code)
    before, after = (
        answers(lm, asked, template=template, max_new_tokens=tokens, batch_size=batch_size)
        for lm in (original, aligned)
    )
    return list(zip(asked, before, after, strict=True))
