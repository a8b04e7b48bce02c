"""What is recorded: one record per quantity, asked for by methods, hashable so that it names its statistics.

Words used here. A *context* is what stands before the query: nothing (`plain`), or the persona sentence of a
side (`good`, `bad`). The *answer* is the text that follows the prompt; it is the same in all contexts of one
spec, so that their rows belong to the same tokens. A *reading* is one side of a linear map in one context.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, get_args

from alignez_bake.errors import BadInputError
from alignez_bake.site import LEGAL_READS, Site

Context = Literal["plain", "good", "bad"]
AnswerSide = Literal["good", "bad"]
MapSide = Literal["input", "output"]
Tokens = Literal["last", "answer_mean", "answer", "shared"]
Weight = Literal["disagreement"]

CONTEXTS: Final[tuple[Context, ...]] = get_args(Context)
ANSWER_SIDES: Final[tuple[AnswerSide, ...]] = get_args(AnswerSide)
TOKENS: Final[tuple[Tokens, ...]] = get_args(Tokens)


class Reading(NamedTuple):
    """The input or the output of a site's map, in one context."""

    context: Context
    side: MapSide


class Pass(NamedTuple):
    """The forward pass that a reading needs: every pair's prompt in a context, followed by one of its answers."""

    context: Context
    answer: AnswerSide


@dataclass(frozen=True)
class RowsSpec:
    """Activations themselves, one row per pair or per token, in the order of the pairs.

    Attributes:
        site: whose map is read; `residual` and `embed` have an output only.
        reading: which side of the map, in which context.
        answer: which answer follows the prompt.
        tokens: `last`: the last token of prompt + answer; `answer_mean`: the mean over the answer's tokens, one
            row a pair; `answer`: every token of the answer; `shared`: every token that the contexts have in
            common, prompt and answer without the beginning-of-sequence token.
        most_tokens: record an even sample of so many rows where there are more; None: all.
        seed: of the sample; specs that differ in site and reading alone record the same tokens.
    """

    site: Site
    reading: Reading
    answer: AnswerSide
    tokens: Tokens = "last"
    most_tokens: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse a reading that the site does not have.

        Raises:
            BadInputError: the site has no map whose input could be read; a sample of no token.
        """
        _check(self.site, (self.reading,), self.tokens)
        _check_sample(self.site, self.most_tokens)

    @property
    def placed(self) -> tuple[tuple[Site, Reading], ...]:
        """What has to be recorded, and where."""
        return ((self.site, self.reading),)

    @property
    def readings(self) -> tuple[Reading, ...]:
        """What has to be recorded."""
        return (self.reading,)


@dataclass(frozen=True)
class MomentsSpec:
    """Second moments of a key Z and of a difference D = plus - minus over the same tokens: ZᵀZ and ZᵀD.

    Attributes:
        site: whose map is read.
        key: Z, of width d_in.
        plus: what D is made of, of width d_out.
        minus: subtracted from `plus` token by token; None: D = plus.
        answer: which answer follows the prompt.
        tokens: `answer` or `shared`, or one row a pair; as in `RowsSpec`.
        weight: None, or `disagreement`: row t of D is multiplied by w_t of `capture.weights`; Z is not.
        rows_if_fewer: keep Z and D themselves where fewer tokens are recorded than Z is wide: `TokenRows`, which hold
            the same in less memory.
        most_tokens: record an even sample of so many tokens where there are more; None: all.
        seed: of the sample.
        target: where D is read, if not at `site`.
        more: what D has besides: readings there, each times a factor.
    """

    site: Site
    key: Reading
    plus: Reading
    minus: Reading | None
    answer: AnswerSide
    tokens: Tokens = "shared"
    weight: Weight | None = None
    rows_if_fewer: bool = False
    most_tokens: int | None = None
    seed: int = 0
    target: Site | None = None
    more: tuple[tuple[float, Reading], ...] = ()

    def __post_init__(self) -> None:
        """Refuse readings that the site does not have, and weights where no token has one.

        Raises:
            BadInputError: as `RowsSpec`; weights on the mean over an answer; a sample of no token.
        """
        _check(self.site, (self.key,), self.tokens)
        _check(self.target_site, self.differing, self.tokens)
        if self.weight is not None and self.tokens == "answer_mean":
            raise BadInputError("weights belong to tokens: they cannot be used with tokens 'answer_mean'")
        _check_sample(self.site, self.most_tokens)

    @property
    def target_site(self) -> Site:
        """Where D is read."""
        return self.site if self.target is None else self.target

    @property
    def differing(self) -> tuple[Reading, ...]:
        """What D is made of."""
        minus = () if self.minus is None else (self.minus,)
        return (self.plus, *minus, *(reading for _, reading in self.more))

    @property
    def placed(self) -> tuple[tuple[Site, Reading], ...]:
        """What has to be recorded, and where."""
        return ((self.site, self.key), *((self.target_site, reading) for reading in self.differing))

    @property
    def readings(self) -> tuple[Reading, ...]:
        """What has to be recorded."""
        return (self.key, *self.differing)


CaptureSpec = RowsSpec | MomentsSpec


def _check(site: Site, readings: tuple[Reading, ...], tokens: Tokens) -> None:
    if tokens not in TOKENS:
        raise BadInputError(f"capture at {site}: tokens {tokens!r} is unknown: use one of {', '.join(TOKENS)}")
    for reading in readings:
        if reading.side not in LEGAL_READS[site.kind]:
            raise BadInputError(f"capture at {site}: site {site.kind!r} has no {reading.side} to record")


def _check_sample(site: Site, most_tokens: int | None) -> None:
    if most_tokens is not None and most_tokens < 1:
        raise BadInputError(f"capture at {site}: a sample of {most_tokens} tokens is empty: ask for 1 or more")
