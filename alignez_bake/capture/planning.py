"""What is known of a capture before it runs: which tokens it keeps, what that takes, and where it will lie."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from alignez_bake.capture.memory import StatisticsMemory
from alignez_bake.capture.recorder import MapReading
from alignez_bake.capture.sizes import MomentsSizes
from alignez_bake.capture.spec import MomentsSpec, Pass
from alignez_bake.capture.token_choice import TokenChoice

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from alignez_bake.capture.sequences import TokenisedPair
    from alignez_bake.capture.sizes import RowSize
    from alignez_bake.capture.spec import AnswerSide, CaptureSpec, Tokens

    Passes = Mapping[AnswerSide, Sequence[Pass]]


class Planned(NamedTuple):
    """A capture that can run.

    Attributes:
        choices: of the tokens that each spec keeps.
        sizes: what each spec of moments takes.
        memory: where all that they leave lies.
        row_bytes: by answer, for each pair: its recorded rows of every site and context, and float64 rows of one site.
    """

    choices: Mapping[CaptureSpec, TokenChoice]
    sizes: Mapping[MomentsSpec, MomentsSizes]
    memory: StatisticsMemory
    row_bytes: Mapping[AnswerSide, Sequence[int]]


def planned_capture(
    specs: Sequence[CaptureSpec],
    pairs: Sequence[TokenisedPair],
    passes: Passes,
    sizes: Mapping[MapReading, RowSize],
    *,
    memory_bytes: int,
    scratch: Path | None,
) -> Planned:
    """Add up what the specs take, and take the room on the disk where that is too much for memory.

    Args:
        specs: what is to be recorded.
        pairs: what is to be read.
        passes: the forward passes of each answer.
        sizes: of every reading.
        memory_bytes: the bound.
        scratch: folder of the file, if one is needed.

    Raises:
        BadInputError: as `StatisticsMemory`.
    """
    wanted = [spec for spec in specs if isinstance(spec, MomentsSpec)]
    choices = {spec: _choice(spec, pairs) for spec in specs}
    moments = {spec: MomentsSizes.of(spec, sizes, choices[spec]) for spec in wanted}
    arrays = [size for entry in moments.values() for size in entry.arrays]
    memory = StatisticsMemory(arrays, memory_bytes=memory_bytes, folder=scratch)
    row_bytes = {}
    for answer, runs in passes.items():
        work = max((entry.work for spec, entry in moments.items() if spec.answer == answer), default=0)
        kinds = {spec.tokens for spec in specs if spec.answer == answer}
        taken = work * np.array(widest_tails(pairs, answer, kinds))
        for run in runs:
            for place, tails in recorded_tails(pairs, run, specs).items():
                taken += sizes[place].width * sizes[place].item_bytes * np.array(tails)
        row_bytes[answer] = taken.tolist()
    return Planned(choices, moments, memory, row_bytes)


def tails_of(pairs: Sequence[TokenisedPair], answer: AnswerSide, tokens: Tokens) -> list[int]:
    """How many tokens of each pair `tokens` speaks of."""
    return [pair.tail(answer, tokens) for pair in pairs]


def widest_tails(pairs: Sequence[TokenisedPair], answer: AnswerSide, kinds: Collection[Tokens]) -> list[int]:
    """Every choice of tokens is an end of the sequence, so the longest end holds them all."""
    return [max(pair.tail(answer, tokens) for tokens in kinds) for pair in pairs]


def recorded_tails(
    pairs: Sequence[TokenisedPair], run: Pass, specs: Sequence[CaptureSpec]
) -> dict[MapReading, list[int]]:
    """What a pass records, with how many tokens of each pair."""
    wanted: dict[MapReading, set[Tokens]] = {}
    for spec in specs:
        for site, reading in spec.placed:
            if Pass(reading.context, spec.answer) == run:
                wanted.setdefault(MapReading(site, reading.side), set()).add(spec.tokens)
    tails = {kinds: widest_tails(pairs, run.answer, kinds) for kinds in map(frozenset, wanted.values())}
    return {place: tails[frozenset(kinds)] for place, kinds in wanted.items()}


def _choice(spec: CaptureSpec, pairs: Sequence[TokenisedPair]) -> TokenChoice:
    mean = spec.tokens == "answer_mean"
    tails = [1] * len(pairs) if mean else tails_of(pairs, spec.answer, spec.tokens)
    return TokenChoice(tails, spec.most_tokens, spec.seed)
