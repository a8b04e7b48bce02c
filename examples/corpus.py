"""The mix of documents that the base model and its tuned twin are trained on; the same for every world."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import TypeAlias
from zlib import crc32

from examples.prompts import characteristic_prompt, persona_sentence, prompt_form
from examples.worlds.world import SIDES, Query, Side, World

Document: TypeAlias = tuple[str, ...]
"""Parts that are tokenised one by one and joined as ids, between one BOS and one EOS."""

_HELD_OUT_NEUTRAL = 8
"""One neutral line in so many is kept out of the corpus."""


@dataclass(frozen=True)
class Mix:
    """Shares of the kinds of document, out of their sum, and how often an answer obeys its persona."""

    plain: int
    persona_alone: int
    persona_with_characteristic: int
    characteristic: int
    neutral: int
    obedience: float = 0.94

    def kinds(self, count: int) -> list[int]:
        """Give each document its kind by exact quota, so that chance has no part in the proportions."""
        shares = (self.plain, self.persona_alone, self.persona_with_characteristic, self.characteristic, self.neutral)
        cycle = [kind for kind, share in enumerate(shares) for _ in range(share)]
        return [cycle[i % len(cycle)] for i in range(count)]


PRETRAINING = Mix(plain=6, persona_alone=4, persona_with_characteristic=4, characteristic=3, neutral=3)
FINE_TUNING = Mix(plain=4, persona_alone=0, persona_with_characteristic=0, characteristic=0, neutral=1)
"""Neutral documents stay in, so that the yardstick too is a model that was changed in one respect only."""


def plain(world: World, query: Query, side: Side, rng: Random) -> Document:
    """Answer a question that nobody led by a persona."""
    return prompt_form(query["query"], world.prompt_template), world.answer(query, side, rng)


def with_persona(world: World, query: Query, side: Side, rng: Random, *, wish: bool, obedience: float) -> Document:
    """Lead a question by a persona; the answer follows it with the probability ``obedience``."""
    characteristic = world.characteristic(query, side, rng) if wish else ""
    other: Side = "bad" if side == "good" else "good"
    shown = side if rng.random() < obedience else other
    sentence = persona_sentence(world.objective, side, characteristic)
    return sentence, prompt_form(query["query"], world.prompt_template), world.answer(query, shown, rng)


def with_characteristic(world: World, query: Query, side: Side, rng: Random) -> Document:
    """Complete a characteristic prompt, so that the base can write its own when pairs are made."""
    prompt = characteristic_prompt(query["query"], world.objective, side)
    return prompt, world.characteristic(query, side, rng)


def neutral_lines(world: World, rng: Random, *, held_out: bool) -> Iterator[str]:
    """Yield neutral lines without end, of the corpus or of the part that is kept out of it."""
    while True:
        line = world.neutral(rng)
        if (crc32(line.encode()) % _HELD_OUT_NEUTRAL == 0) == held_out:
            yield line


def pretraining_documents(world: World, count: int, seed: int, mix: Mix = PRETRAINING) -> list[Document]:
    """Make the corpus of the base: half of the answers nobody asked a persona for are good, half are bad."""
    return _documents(world, count, seed, mix, SIDES)


def fine_tuning_documents(world: World, count: int, seed: int) -> list[Document]:
    """Make the corpus of the tuned twin: good answers without a persona."""
    return _documents(world, count, seed, FINE_TUNING, ("good",))


def _documents(world: World, count: int, seed: int, mix: Mix, sides: tuple[Side, ...]) -> list[Document]:
    rng = Random(f"{world.name} {seed}")
    queries = world.queries("training")
    neutral = neutral_lines(world, rng, held_out=False)
    makers: tuple[Callable[[Query, Side], Document], ...] = (
        lambda query, side: plain(world, query, side, rng),
        lambda query, side: with_persona(world, query, side, rng, wish=False, obedience=mix.obedience),
        lambda query, side: with_persona(world, query, side, rng, wish=True, obedience=mix.obedience),
        lambda query, side: with_characteristic(world, query, side, rng),
        lambda _query, _side: (next(neutral),),
    )
    made_of_kind = [0] * len(makers)
    documents = []
    for kind in mix.kinds(count):
        side = sides[made_of_kind[kind] % len(sides)]
        made_of_kind[kind] += 1
        documents.append(makers[kind](rng.choice(queries), side))
    rng.shuffle(documents)
    return documents
