"""The texts on which edits are refitted unless others are given."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignez_bake.errors import BadInputError
from alignez_bake.prompts.queries import neutral_texts, shipped_queries

if TYPE_CHECKING:
    from alignez_bake.language_model.loading import LanguageModel
    from alignez_bake.prompts.prompt_form import PromptForm

_EVERY_QUERY = ""  # no objective has this name, and a name without queries of its own gives all of them


def refit_sequences(lm: LanguageModel, form: PromptForm, *, tokens: int = 16384) -> list[list[int]]:
    """The neutral texts and the general queries that the project ships, as token ids.

    The two are interleaved evenly, so that a small number of tokens holds both in the proportion of the whole.
    The same arguments give the same ids.

    Args:
        lm: the model; texts that it has no positions for are cut.
        form: the model's prompt form, in which the queries stand; neutral texts stand as they are.
        tokens: most tokens in all; the shipped texts may have fewer.

    Returns:
        As many whole texts, in a fixed order, as fit into `tokens`.

    Raises:
        BadInputError: no text fits into `tokens`.
    """
    neutral = [form.text_ids(text) for text in neutral_texts()]
    asked = [form.context_ids(query["query"], None) for query in shipped_queries(_EVERY_QUERY)]
    placed = [
        ((place + 0.5) / len(kind), number, ids)
        for number, kind in enumerate((neutral, asked))
        for place, ids in enumerate(kind)
    ]
    positions = getattr(lm.model.config, "max_position_embeddings", None)
    chosen: list[list[int]] = []
    left = tokens
    for _, _, whole in sorted(placed, key=lambda item: item[:2]):
        ids = whole[:positions]
        if len(ids) > left:
            break
        chosen.append(ids)
        left -= len(ids)
    if not chosen:
        raise BadInputError(f"{tokens} tokens hold none of the texts to fit edits on: the default is 16384")
    return chosen
