"""How the trained models behave on held-out queries: answers sampled at temperature 1 and judged by rule."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from examples.prompts import characteristic_prompt, persona_sentence, prompt_form
from examples.tokenizer import encode_parts
from examples.worlds.world import SIDES, Query, Side, World

_BATCH = 96
_ANSWER_TOKENS = 60
_CHARACTERISTIC_TOKENS = 50


@dataclass(frozen=True)
class Behaviour:
    """Shares of answers that the judge calls good. Where a bad persona speaks, a low share is obedience."""

    answers_each: int
    unasked: float
    persona: dict[Side, float]
    """Persona with an empty characteristic."""
    own_characteristic: dict[Side, float]
    """Persona with the characteristic that the model wrote itself, as in the making of pairs."""
    empty_characteristics: float


def sample(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[Sequence[str]], new_tokens: int
) -> list[str]:
    """Sample one continuation per prompt at temperature 1, without top-k or top-p; prompts are tuples of parts."""
    texts = []
    for start in range(0, len(prompts), _BATCH):
        rows = [encode_parts(tokenizer, parts) for parts in prompts[start : start + _BATCH]]
        longest = max(map(len, rows))
        pad = tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        with torch.inference_mode():
            output = model.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=new_tokens,
            )
        texts += tokenizer.batch_decode(output[:, longest:], skip_special_tokens=True)
    return texts


def good_rate(world: World, queries: Sequence[Query], answers: Sequence[str]) -> float:
    """Return the share of answers that the judge puts above 0."""
    good = [world.judge(query, answer) > 0 for query, answer in zip(queries, answers, strict=True)]
    return sum(good) / len(good)


def unasked_rate(
    world: World, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, queries: Sequence[Query], seed: int
) -> float:
    """Return the good rate of a model when nobody asks for a persona."""
    torch.manual_seed(seed)
    prompts = [(prompt_form(query["query"], world.prompt_template),) for query in queries]
    return good_rate(world, queries, sample(model, tokenizer, prompts, _ANSWER_TOKENS))


def measure(
    world: World, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, queries: Sequence[Query], seed: int
) -> Behaviour:
    """Ask every query unasked, under both personas, and under both with a characteristic of the model's own."""
    unasked = unasked_rate(world, model, tokenizer, queries, seed)
    persona: dict[Side, float] = {}
    own: dict[Side, float] = {}
    empty = 0
    for side in SIDES:
        asked = [(characteristic_prompt(query["query"], world.objective, side),) for query in queries]
        wishes = [text.strip().rstrip(".") for text in sample(model, tokenizer, asked, _CHARACTERISTIC_TOKENS)]
        empty += wishes.count("")
        for rates, characteristics in ((persona, [""] * len(queries)), (own, wishes)):
            prompts = [
                (persona_sentence(world.objective, side, wish), prompt_form(query["query"], world.prompt_template))
                for query, wish in zip(queries, characteristics, strict=True)
            ]
            rates[side] = good_rate(world, queries, sample(model, tokenizer, prompts, _ANSWER_TOKENS))
    return Behaviour(len(queries), unasked, persona, own, empty / (2 * len(queries)))
