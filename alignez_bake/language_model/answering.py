"""What `compare` and the model card ask of a model, whatever runs it: continue contexts, by a tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from alignez_bake.errors import BadInputError
from alignez_bake.language_model.sampling import sample

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from transformers import PreTrainedTokenizerBase

    from alignez_bake.language_model.loading import LanguageModel
    from alignez_bake.progress import Progress


class Answering(Protocol):
    """A model that continues contexts."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer."""
        ...

    @property
    def positions(self) -> int | None:
        """Most tokens of a context and its continuation together; None where there is no bound."""
        ...

    def continued(
        self,
        contexts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        batch_size: int,
        seed: int,
        temperature: float,
        progress: Progress | None,
    ) -> list[list[int]]:
        """Continue each context once.

        Args:
            contexts: token ids, each with at least one.
            max_new_tokens: most new tokens of an answer, at least 1.
            batch_size: contexts that run together.
            seed: of all samples.
            temperature: 0 is greedy.
            progress: counts contexts.

        Returns:
            For each context the new token ids, without EOS and what follows it.

        Raises:
            BadInputError: an empty context, one too long for the model, or a setting out of bounds.
        """
        ...


def check_room(contexts: Sequence[Sequence[int]], new_tokens: int, positions: int | None, place: str) -> None:
    """Refuse contexts that leave no room for their answers, before anything runs.

    Args:
        contexts: token ids.
        new_tokens: most new tokens of an answer.
        positions: how many the model has; None: there is no bound.
        place: the model, for the message.

    Raises:
        BadInputError: the longest context and its answer have more tokens than the model has positions.
    """
    longest = max((len(context) for context in contexts), default=0)
    if positions is not None and longest + new_tokens > positions:
        raise BadInputError(
            f"a text of {longest} tokens and {new_tokens} new ones is too long for {place}, which has {positions} "
            "positions: shorten the queries, or ask for fewer new tokens"
        )


def stated_positions(config: Mapping[str, Any]) -> int | None:
    """How many positions a config.json says; None where it does not."""
    stated = config.get("max_position_embeddings", config.get("n_positions"))
    return stated if isinstance(stated, int) else None


@dataclass(frozen=True)
class TorchAnswering:
    """A model that transformers runs."""

    lm: LanguageModel

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        return self.lm.tokenizer

    @property
    def positions(self) -> int | None:
        """`max_position_embeddings` of the config."""
        return getattr(self.lm.model.config, "max_position_embeddings", None)

    def continued(
        self,
        contexts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        batch_size: int,
        seed: int,
        temperature: float,
        progress: Progress | None,
    ) -> list[list[int]]:
        """As `Answering.continued`; samples depend on the batch size."""
        self.lm.check_fits(contexts, new_tokens=max_new_tokens)
        return sample(
            self.lm,
            contexts,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            seed=seed,
            temperature=temperature or 1.0,
            greedy=temperature == 0,
            progress=progress,
        )
