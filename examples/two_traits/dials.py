"""What each dial does to each trait, by rule: edits fitted separately and jointly to the base's own pairs.

``python -m examples.two_traits.dials --seed 0`` prints a table: change of the share of answers with each trait, in
percent, when one dial is turned and the other is at 0. Every plan answers the same queries with the same random
numbers.
"""

import argparse
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Final

import torch

from alignez_bake.capture.run import Capture
from alignez_bake.capture.tokenise import tokenise_pairs
from alignez_bake.edit_plan import EditPlan
from alignez_bake.language_model.loading import LanguageModel, load_language_model
from alignez_bake.lowering.hooks import edited_by_hooks
from alignez_bake.methods.joint import joint_captures
from alignez_bake.methods.protocol import CaptureFunction, Method, MethodSettings
from alignez_bake.methods.residual_ridge import RESIDUAL_RIDGE
from alignez_bake.methods.ridge import RIDGE
from alignez_bake.model_folder import open_model_folder
from alignez_bake.preference_pairs.filters import Pair, match_pairs
from alignez_bake.preference_pairs.generation import generate_pairs
from alignez_bake.progress import NoProgress
from alignez_bake.prompts.objective import Objective, read_objectives_file
from alignez_bake.prompts.prompt_form import PromptForm, prompt_form
from alignez_bake.tuning.coupled_sampling import coupled_sample
from alignez_bake.tuning.uncertainty import standard_error
from examples.two_traits.world import TRAITS, Trait, queries, traits

FOLDER: Final = Path(__file__).parent
SETTINGS: Final = (("warm", 1.0), ("warm", -1.0), ("brief", 1.0), ("brief", -1.0))
BATCH: Final = 64
ANSWER_TOKENS: Final = 40


class TwoTraits:
    """The base with pairs of its own, and what it answers with edits in place.

    Attributes:
        lm: the base.
        objectives: of both traits.
        pairs: by trait, written by the base.
    """

    def __init__(self, *, seed: int = 0, folder: Path = FOLDER) -> None:
        """Load the base and let it write pairs on queries that it was not trained on."""
        self.lm: LanguageModel = load_language_model(open_model_folder(folder / "base"))
        self.form: PromptForm = prompt_form(self.lm.tokenizer)
        self.objectives: dict[str, Objective] = read_objectives_file(folder / "objectives.json")
        records = generate_pairs(
            self.lm,
            [dict(query) for query in queries(1)],
            list(self.objectives.values()),
            self.form,
            None,
            batch_size=BATCH,
            seed=seed,
            characteristic_tokens=8,
            answer_tokens=ANSWER_TOKENS,
        ).records
        self.pairs: dict[str, list[Pair]] = {name: match_pairs(records, name)[0] for name in self.objectives}

    def captures(self, *, joint: bool) -> Mapping[str, CaptureFunction]:
        """A capture for each objective, as a fit makes them."""
        if joint:
            everything = [pair for pairs in self.pairs.values() for pair in pairs]
            read = {name: tokenise_pairs(everything, each, self.form) for name, each in self.objectives.items()}
            return joint_captures(self.lm, read, batch_size=BATCH, progress=NoProgress())
        own = {name: tokenise_pairs(self.pairs[name], each, self.form) for name, each in self.objectives.items()}
        return {name: Capture(self.lm, pairs, batch_size=BATCH) for name, pairs in own.items()}

    def fitted(self, *, joint: bool, method: Method = RIDGE) -> EditPlan:
        """The edits of both objectives."""
        layers = range(self.lm.folder.num_layers)
        edits = [
            edit
            for name, capture in self.captures(joint=joint).items()
            for edit in method.fit(capture, self.lm.architecture, layers, MethodSettings(objective=name)).edits
        ]
        return EditPlan(tuple(edits))

    def shown(self, plan: EditPlan | None, answers: int, *, seed: int) -> dict[Trait, list[float]]:
        """Of sampled answers to held-out queries, for each trait, which have its good side: 1 or 0.

        Answer i is to query i modulo their number.
        """
        asked = [query["query"] for query in queries(2)]
        contexts = [self.form.context_ids(asked[number % len(asked)], None) for number in range(answers)]
        turned = nullcontext() if plan is None else edited_by_hooks(self.lm.model, self.lm.architecture, plan)
        with turned:
            found = coupled_sample(
                self.lm, contexts, range(answers), seed=seed, max_new_tokens=ANSWER_TOKENS, batch_size=BATCH
            )
        texts = [self.lm.tokenizer.decode(answer.ids, skip_special_tokens=True) for answer in found]
        judged = [traits(text) for text in texts]
        return {trait: [float(each[trait] == "good") for each in judged] for trait in TRAITS}

    def changes(
        self, plan: EditPlan, dials: Sequence[tuple[str, float]], answers: int, *, seed: int
    ) -> list[dict[Trait, tuple[float, float]]]:
        """For each dial turned alone the change of both traits' rates, with its standard error clustered by query."""
        before = self.shown(None, answers, seed=seed)
        found = []
        for turned, weight in dials:
            weights = {name: weight if name == turned else 0.0 for name in self.objectives}
            after = self.shown(plan.with_weights(weights), answers, seed=seed)
            change: dict[Trait, tuple[float, float]] = {}
            for trait in TRAITS:
                values = torch.tensor(after[trait]).double().sub(torch.tensor(before[trait])).numpy()
                change[trait] = float(values.mean()), standard_error(values, len(queries(2)))
            found.append(change)
        return found


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.two_traits.dials", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of pairs and answers")
    parser.add_argument("--answers", type=int, default=512)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    world = TwoTraits(seed=arguments.seed)
    print("| method | fit | dial | warm | brief |\n|---|---|---|---:|---:|")
    methods: tuple[Method, ...] = (RIDGE, RESIDUAL_RIDGE)
    for method in methods:
        for joint in (False, True):
            plan = world.fitted(joint=joint, method=method)
            changes = world.changes(plan, SETTINGS, arguments.answers, seed=arguments.seed)
            for (name, weight), change in zip(SETTINGS, changes, strict=True):
                cells = " | ".join(f"{100 * value:+.1f} ± {100 * error:.1f}" for value, error in change.values())
                fit = "joint" if joint else "separate"
                print(f"| {method.name} | {fit} | {name} = {weight:g} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
