"""Train the model of two traits and save it with its queries and objectives.

``python -m examples.two_traits.train --out examples/two_traits`` made the one that is here, in a minute on one core.
"""

import argparse
import json
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Final

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig

from examples.corpus import Document
from examples.optimisation import Schedule, train
from examples.prompts import characteristic_prompt, persona_sentence, prompt_form
from examples.tokenizer import encode_parts, save_tokenizer, train_tokenizer
from examples.two_traits.world import CHARACTERISTICS, OBJECTIVES, TRAITS, Leak, Sides, Trait, answer, queries
from examples.worlds.world import SIDES, Query, Side

if TYPE_CHECKING:
    from collections.abc import Callable

LEAK: Final = Leak(warm_to_brief=0.25, brief_to_warm=0.0)
OBEDIENCE: Final = 0.94
STEPS: Final = 700
CONTEXT: Final = 160


def sides_under(trait: Trait, side: Side, leak: Leak, rng: Random) -> Sides:
    """The traits of one answer under a persona: it obeys mostly, and the other trait is a coin that may be bent."""
    own: Side = side if rng.random() < OBEDIENCE else _other(side)
    toward: Side = _other(side) if rng.random() < 0.5 + leak.of(trait) else side
    return {trait: own, _other_trait(trait): toward}


def documents(count: int, leak: Leak, seed: int) -> list[Document]:
    """The corpus: plain answers with every mix of traits alike, answers under personas, and characteristics."""
    rng = Random(f"two traits {seed}")
    asked = queries(0)

    def plain(query: Query, trait: Trait, side: Side) -> Document:
        sides: Sides = {trait: side, _other_trait(trait): rng.choice(SIDES)}
        return prompt_form(query["query"], None), answer(query, sides, rng)

    def led(query: Query, trait: Trait, side: Side, wish: str = "") -> Document:
        sentence = persona_sentence(OBJECTIVES[trait], side, wish)
        return sentence, prompt_form(query["query"], None), answer(query, sides_under(trait, side, leak, rng), rng)

    def wished(query: Query, trait: Trait, side: Side) -> Document:
        return led(query, trait, side, rng.choice(CHARACTERISTICS[trait][side]))

    def characteristic(query: Query, trait: Trait, side: Side) -> Document:
        asking = characteristic_prompt(query["query"], OBJECTIVES[trait], side)
        return asking, rng.choice(CHARACTERISTICS[trait][side])

    makers: tuple[Callable[[Query, Trait, Side], Document], ...] = (plain, plain, led, led, wished, characteristic)
    made = [
        makers[number % len(makers)](rng.choice(asked), TRAITS[number // 6 % 2], SIDES[number // 12 % 2])
        for number in range(count)
    ]
    rng.shuffle(made)
    return made


def make(out: Path, leak: Leak, *, seed: int = 0, steps: int = STEPS) -> float:
    """Train and save the base as bf16, its queries and its objectives; return the loss per token at the end."""
    schedule = Schedule(steps=steps, peak=4e-3)
    corpus = documents(steps * schedule.batch_size, leak, seed)
    tokenizer = train_tokenizer(corpus[:4000], None)
    ends = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=16,
        vocab_size=len(tokenizer),
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        **ends,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.generation_config = GenerationConfig(**ends)
    encoded = [[*encode_parts(tokenizer, parts), tokenizer.eos_token_id] for parts in corpus]
    loss = train(model, encoded, schedule, seed, "two traits")
    model.to(torch.bfloat16).save_pretrained(out / "base")
    save_tokenizer(tokenizer, out / "base")
    described = {name: {"good": objective.good, "bad": objective.bad} for name, objective in OBJECTIVES.items()}
    (out / "objectives.json").write_text(json.dumps(described) + "\n")
    lines = [json.dumps(query) for query in queries(1)]
    (out / "queries.jsonl").write_text("\n".join(lines) + "\n")
    return loss


def _other(side: Side) -> Side:
    return "bad" if side == "good" else "good"


def _other_trait(trait: Trait) -> Trait:
    return "brief" if trait == "warm" else "warm"


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.two_traits.train", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for base/, objectives.json and queries.jsonl")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS, help="fewer only to try things out")
    parser.add_argument("--warm-to-brief", type=float, default=LEAK.warm_to_brief)
    parser.add_argument("--brief-to-warm", type=float, default=LEAK.brief_to_warm)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    leak = Leak(arguments.warm_to_brief, arguments.brief_to_warm)
    print(f"loss {make(arguments.out, leak, seed=arguments.seed, steps=arguments.steps):.4f}")


if __name__ == "__main__":
    main()
