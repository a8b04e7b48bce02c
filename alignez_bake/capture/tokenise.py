"""From the texts of pairs to the ids that are recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from alignez_bake.capture.sequences import TokenisedPair
from alignez_bake.prompts.persona import persona_sentence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alignez_bake.preference_pairs.filters import Pair
    from alignez_bake.prompts.objective import Objective
    from alignez_bake.prompts.prompt_form import PromptForm

Sentence = Literal["own_words", "characteristic"]

# One sentence for all queries: what differs between contexts is then the persona, not what was asked for.
DEFAULT_SENTENCE: Final[Sentence] = "own_words"


def tokenise_pairs(
    pairs: Sequence[Pair],
    objective: Objective,
    prompt_form: PromptForm,
    *,
    sentence: Sentence = DEFAULT_SENTENCE,
    eos: bool = False,
) -> list[TokenisedPair]:
    """Prompts in all contexts, and answers, as token ids.

    Args:
        pairs: of that objective.
        objective: whose personas stand in the contexts `good` and `bad`.
        prompt_form: how texts become ids.
        sentence: `own_words`: "Your answer should be {good|bad}." for every query; `characteristic`: each side's
            own characteristic, under which its answer was written, where the pair has one.
        eos: append the end of sequence to the answers. Without it every recorded token is one after which the
            model was trained to predict something.

    Raises:
        BadInputError: a chat template that breaks the shared tokens, or an answer without tokens.
    """
    tokenised = []
    for pair in pairs:
        wishes = (pair.good.characteristic, pair.bad.characteristic) if sentence == "characteristic" else ("", "")
        personas = (persona_sentence(objective, "good", wishes[0]), persona_sentence(objective, "bad", wishes[1]))
        contexts = prompt_form.contexts(pair.query["query"], [None, *personas])
        plain, good, bad = map(tuple, contexts.ids)
        tokenised.append(
            TokenisedPair(
                prompts={"plain": plain, "good": good, "bad": bad},
                shared=contexts.shared,
                answers={
                    "good": tuple(prompt_form.answer_ids(pair.good.text, eos=eos)),
                    "bad": tuple(prompt_form.answer_ids(pair.bad.text, eos=eos)),
                },
                name=pair.query["query"],
            )
        )
    return tokenised
