"""Pairs as token ids: what precedes the answer in each context, and the two answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from alignez_bake.capture.spec import ANSWER_SIDES, CONTEXTS, AnswerSide, Context, Pass, Tokens
from alignez_bake.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class TokenisedPair:
    """One query with its two answers.

    Attributes:
        prompts: ids before the answer in each context; every context ends with the same ids, those of the prompt.
        shared: how many ids that is; the beginning-of-sequence id and the persona sentence are not among them.
        answers: ids of the answer of each side.
        name: for messages, such as the query.
    """

    prompts: Mapping[Context, tuple[int, ...]]
    shared: int
    answers: Mapping[AnswerSide, tuple[int, ...]]
    name: str

    def __post_init__(self) -> None:
        """Check what recording relies on.

        Raises:
            BadInputError: contexts that do not end alike, a number of shared ids that cannot be, or an answer
                without a token.
        """
        plain = self.prompts["plain"]
        if not 1 <= self.shared <= len(plain):
            raise BadInputError(f"query {self.name!r}: {self.shared} of {len(plain)} prompt tokens cannot be shared")
        for context in CONTEXTS:
            if self.prompts[context][-self.shared :] != plain[-self.shared :]:
                raise BadInputError(f"query {self.name!r}: its prompt has other tokens after the {context} persona")
        for side in ANSWER_SIDES:
            if not self.answers[side]:
                raise BadInputError(f"query {self.name!r}: its {side} answer is empty; drop the pair")

    def sequence(self, run: Pass) -> tuple[int, ...]:
        """Prompt and answer as one forward pass reads them."""
        return self.prompts[run.context] + self.answers[run.answer]

    def tail(self, answer: AnswerSide, tokens: Tokens) -> int:
        """How many tokens, counted from the end of prompt + answer, `tokens` speaks of.

        Every choice of tokens is an end of the sequence, the same in each context, so that it is a number.
        """
        if tokens == "last":
            return 1
        own = len(self.answers[answer])
        return self.shared + own if tokens == "shared" else own
