"""The prompts on which baked and hooked model are compared: fixed, so that anyone gets the same figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from alignez_bake.language_model.loading import quiet_transformers
from alignez_bake.prompts.queries import neutral_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROMPTS: Final = 32
SHORTEST: Final = 16
LONGEST: Final = 128
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
