"""Train a base model on a world and its fine-tuned twin, save both in bf16, and say how they behave.

``python -m examples.train --world museum --architecture llama --out examples/demo --seed 0`` made the demo model.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from examples.architectures import ARCHITECTURES
from examples.corpus import Document, fine_tuning_documents, pretraining_documents
from examples.data_files import good_documents, held_out_queries, write_data_files
from examples.measure import Behaviour, measure, unasked_rate
from examples.optimisation import Schedule, mean_loss, train
from examples.prompts import prompt_form
from examples.tokenizer import encode_parts, save_tokenizer, train_tokenizer
from examples.worlds import WORLDS, World

SAMPLES_PER_QUERY = 2
STEPS = 1000
"""Of the base; its twin takes an eighth of them."""


@dataclass(frozen=True)
class Losses:
    """Mean loss per token at the end of each training, and on good documents about held-out subjects."""

    pretraining: float
    fine_tuning: float
    good_documents_base: float
    good_documents_tuned: float


@dataclass(frozen=True)
class Outcome:
    """What a run was asked for and what came out; saved as ``measured.json`` beside the twins."""

    world: str
    architecture: str
    seed: int
    prompt_template: str | None
    """None where queries are asked in AlignEZ's form."""
    parameters: int
    base: Behaviour
    tuned_unasked: float
    losses: Losses

    def to_json(self) -> str:
        """Write it out as the text of ``measured.json``, which names a prompt template only if there is one."""
        return json.dumps({key: value for key, value in asdict(self).items() if value is not None}, indent=2) + "\n"

    def table(self) -> str:
        """Lay the figures out as a Markdown table, the form in which the README shows them."""
        base = self.base
        rows = [
            ("base, nobody asks", base.unasked),
            ("base, good persona, empty characteristic", base.persona["good"]),
            ("base, good persona, its own characteristic", base.own_characteristic["good"]),
            ("base, bad persona, empty characteristic", base.persona["bad"]),
            ("base, bad persona, its own characteristic", base.own_characteristic["bad"]),
            ("tuned twin, nobody asks", self.tuned_unasked),
        ]
        lines = [f"| {base.answers_each} answers each | judged good |", "|---|---|"]
        lines += [f"| {label} | {rate:.1%} |" for label, rate in rows]
        return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    """Read the command line; only the world and the folder have no default."""
    parser = argparse.ArgumentParser(prog="python -m examples.train", description=__doc__)
    parser.add_argument("--world", choices=sorted(WORLDS), required=True)
    parser.add_argument("--architecture", choices=sorted(ARCHITECTURES), default="llama")
    parser.add_argument("--out", type=Path, required=True, help="folder for base/, tuned/ and the data files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS, help="steps of the base; fewer only to try things out")
    parser.add_argument("--threads", type=int, default=2, help="another number gives other last digits")
    return parser.parse_args()


def new_model(architecture: str, tokenizer: PreTrainedTokenizerFast, seed: int) -> PreTrainedModel:
    """Start from seeded random weights, with the tokenizer's special tokens in both of its configurations."""
    torch.manual_seed(seed)
    config = ARCHITECTURES[architecture]()
    ends = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config.update(ends)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.generation_config = GenerationConfig(**ends)
    return model


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> PreTrainedModel:
    """Save in bf16 and hand back what a user would load, in fp32 arithmetic: that is what gets measured."""
    model.to(torch.bfloat16).save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return loaded.eval()


def make_twins(world: World, architecture: str, out: Path, seed: int, steps: int) -> Outcome:
    """Train, save and measure the base, then its twin. The twin starts from the base as saved, rounding included."""
    pretraining = Schedule(steps=steps, peak=2e-3)
    fine_tuning = Schedule(steps=max(1, steps // 8), peak=5e-4, warm_up=10)

    documents = pretraining_documents(world, pretraining.steps * pretraining.batch_size, seed)
    tokenizer = train_tokenizer(documents, world.prompt_template)

    def encode(batch: list[Document]) -> list[list[int]]:
        return [[*encode_parts(tokenizer, parts), tokenizer.eos_token_id] for parts in batch]

    model = new_model(architecture, tokenizer, seed)
    pretraining_loss = train(model, encode(documents), pretraining, seed, "base")
    base = save(model, tokenizer, out / "base")
    write_data_files(world, out)

    queries = held_out_queries(world) * SAMPLES_PER_QUERY
    behaviour = measure(world, base, tokenizer, queries, seed)
    answered = good_documents(world)
    good = encode([(prompt_form(record["query"], world.prompt_template), record["answer"]) for record in answered])
    good_loss = mean_loss(base, good)

    more = fine_tuning_documents(world, fine_tuning.steps * fine_tuning.batch_size, seed + 1)
    fine_tuning_loss = train(base, encode(more), fine_tuning, seed + 1, "tuned")
    tuned = save(base, tokenizer, out / "tuned")
    outcome = Outcome(
        world=world.name,
        architecture=architecture,
        seed=seed,
        prompt_template=world.prompt_template,
        parameters=sum(parameter.numel() for parameter in tuned.parameters()),
        base=behaviour,
        tuned_unasked=unasked_rate(world, tuned, tokenizer, queries, seed),
        losses=Losses(pretraining_loss, fine_tuning_loss, good_loss, mean_loss(tuned, good)),
    )
    (out / "measured.json").write_text(outcome.to_json())
    return outcome


def main() -> None:
    """Run from the command line."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    torch.use_deterministic_algorithms(True)
    world = WORLDS[arguments.world]
    outcome = make_twins(world, arguments.architecture, arguments.out, arguments.seed, arguments.steps)
    print(outcome.table())
    print(json.dumps(asdict(outcome.losses)))


if __name__ == "__main__":
    main()
