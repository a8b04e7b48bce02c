"""The prompts on which baked and hooked model are compared: fixed, so that anyone gets the same figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from alignez_bake.language_model.loading import has_tokenizer, quiet_transformers, tokenizer_of
from alignez_bake.prompts.queries import neutral_texts

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from alignez_bake.model_folder import ModelFolder

PROMPTS: Final = 32
SHORTEST: Final = 16
LONGEST: Final = 128
GREEDY_TOKENS: Final = 64
# One sequence at a time is slow, and shows what the batch does not: no padding. A few prompts show it.
GREEDY_PROMPTS_ALONE: Final = 8
_SEED: Final = 0


@dataclass(frozen=True)
class CertificatePrompts:
    """Token ids of the prompts, and where they come from.

    Attributes:
        ids: 32 prompts; lengths from 16 to 128 tokens, evenly spread, fewer where the model has fewer positions.
        source: for the certificate.
    """

    ids: tuple[tuple[int, ...], ...]
    source: str

    @property
    def alone(self) -> tuple[tuple[int, ...], ...]:
        """Some of them, of all lengths, whose greedy tokens are compared one prompt at a time."""
        return self.ids[:: max(1, len(self.ids) // GREEDY_PROMPTS_ALONE)]

    def to_json(self) -> dict[str, Any]:
        """Where they come from, how many, and their lengths."""
        lengths = [len(ids) for ids in self.ids]
        return {"count": len(lengths), "shortest": min(lengths), "longest": max(lengths), "source": self.source}


def fitted_prompts(
    base: ModelFolder, model: PreTrainedModel, *, trust_remote_code: bool = False
) -> tuple[CertificatePrompts, int]:
    """The prompts, and how many greedy tokens follow each: 64, or half of the model's positions if that is less.

    Args:
        base: whose tokenizer makes the prompts, if it has one.
        model: whose positions and vocabulary bound them.
        trust_remote_code: passed to transformers' loader.

    Raises:
        BadInputError: a tokenizer that does not load.
    """
    positions = int(getattr(model.config, "max_position_embeddings", None) or 10**9)
    new_tokens = min(GREEDY_TOKENS, max(1, positions // 2))
    vocabulary = int(model.get_input_embeddings().num_embeddings)
    tokenizer = tokenizer_of(base.path, trust_remote_code=trust_remote_code) if has_tokenizer(base.path) else None
    return certificate_prompts(tokenizer, vocabulary_size=vocabulary, longest=positions - new_tokens), new_tokens


def certificate_prompts(
    tokenizer: PreTrainedTokenizerBase | None, *, vocabulary_size: int, longest: int = LONGEST
) -> CertificatePrompts:
    """Prompts cut from the neutral texts that the project ships, or random ids where there is no tokenizer.

    Args:
        tokenizer: the base's; None if the folder has none.
        vocabulary_size: ids lie below it.
        longest: most tokens of a prompt that the model has room for.
    """
    lengths = np.linspace(min(SHORTEST, longest), min(LONGEST, longest), PROMPTS).round().astype(int)
    if tokenizer is None:
        rng = np.random.default_rng(_SEED)
        ids = tuple(tuple(rng.integers(0, vocabulary_size, size=length).tolist()) for length in lengths)
        return CertificatePrompts(ids, f"random token ids, seed {_SEED}: the folder has no tokenizer")
    passages = neutral_texts()
    prompts = []
    for index, length in enumerate(lengths):
        # Each prompt begins at a passage of its own and runs on into the next ones as far as it needs.
        start = index * len(passages) // PROMPTS
        running = " ".join(passages[start:] + passages[:start])
        characters = 4 * int(length)
        tokens: list[int] = []
        with quiet_transformers():  # a text longer than the model's context is cut below
            while len(tokens) < length and characters < 2 * len(running):
                tokens = tokenizer(running[:characters])["input_ids"]
                characters *= 2
        prompts.append(tuple(min(int(token), vocabulary_size - 1) for token in tokens[:length]))
    return CertificatePrompts(tuple(prompts), "the neutral texts that come with alignez-bake")
