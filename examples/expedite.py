"""Does alignment without labels expedite tuning with them? DPO on a part of the preference data, then the tool.

``python -m examples.expedite --out out/expedite``

AlignEZ (arXiv 2406.03642) reports that a model tuned by DPO on 1 % of the preference data and then aligned does about
as well as one tuned on 25 %. This tunes the demo's base on 1, 5, 10, 25 and 100 % of the preferences of its world
(`expedite_data`), aligns each result with this tool at its defaults, as a user would, and draws both curves. Needs the
extras `[dpo]` and `[report]`. Finished points stay under --out: the same command goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from alignez_bake import align
from alignez_bake.asked_fit import AUTO
from alignez_bake.errors import BadInputError, CheckFailedError
from alignez_bake.evaluation.behaviour import good_rate
from alignez_bake.evaluation.drift import answer_loss, kl_on_texts
from alignez_bake.evaluation.rates import Rate, rate
from alignez_bake.language_model.loading import load_language_model
from alignez_bake.model_folder import open_model_folder
from alignez_bake.prompts.prompt_form import prompt_form
from alignez_bake.prompts.queries import read_queries
from examples.expedite_data import share_of, world_preferences
from examples.expedite_plot import draw
from examples.preference_tuning import DpoSettings, LoraShape, check_installed, dpo_tuned
from examples.worlds import WORLDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alignez_bake.language_model.loading import LanguageModel
    from alignez_bake.prompts.prompt_form import PromptForm

DEMO = Path(__file__).parent / "demo"
PERCENTS = (0.0, 1.0, 5.0, 10.0, 25.0, 100.0)
ANSWER_TOKENS = 60
DPO_BATCH = 4


@dataclass(frozen=True)
class Measured:
    """One model: judged answers, loss on good documents, KL from the base on neutral texts (nats a token)."""

    rate: Rate
    loss: float
    kl: float

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Measured:
        """What `to_json` wrote."""
        return cls(rate(values["rate"]["successes"], values["rate"]["total"]), values["loss"], values["kl"])

    def to_json(self) -> dict[str, Any]:
        """The figures as JSON values."""
        return {"rate": self.rate.as_json(), "loss": self.loss, "kl": self.kl}


@dataclass(frozen=True)
class Point:
    """What a part of the data gives.

    Attributes:
        percent: of the preferences; 0: the base itself.
        preferences: how many those are.
        tuned: the model tuned on them.
        aligned: the same, aligned; None where the tool refused.
        refused: why, or None.
    """

    percent: float
    preferences: int
    tuned: Measured
    aligned: Measured | None
    refused: str | None

    def to_json(self) -> dict[str, Any]:
        """The point as JSON values."""
        aligned = None if self.aligned is None else self.aligned.to_json()
        return {**asdict(self), "tuned": self.tuned.to_json(), "aligned": aligned}


@dataclass(frozen=True, eq=False)
class Bench:
    """A world's folder with its base, ready to tune, align and measure."""

    folder: Path
    base: LanguageModel
    form: PromptForm
    world: str
    samples: int
    batch_size: int
    seed: int
    method: str = AUTO

    def point(self, percent: float, size: int, settings: DpoSettings) -> Point:
        """Tune on a part of the preferences, align the result, measure both."""
        preferences = world_preferences(WORLDS[self.world], size, self.seed)
        part = share_of(preferences, percent) if percent else []
        with tempfile.TemporaryDirectory() as scratch:
            folder = self.base.folder.path
            if part:
                folder = dpo_tuned(self.base.folder, part, self.form, settings, Path(scratch) / "tuned")
            tuned = self.measured(folder)
            try:
                align(
                    folder,
                    Path(scratch) / "aligned",
                    objective=WORLDS[self.world].objective.name,
                    objectives_file=self.folder / "objectives.json",
                    queries=self.folder / "queries.jsonl",
                    prompt_template=self.form.template,
                    method=self.method,
                    seed=self.seed,
                    batch_size=self.batch_size,
                ).raise_if_failed()
            except (BadInputError, CheckFailedError) as error:
                return Point(percent, len(part), tuned, None, str(error).replace(scratch, "SCRATCH"))
            return Point(percent, len(part), tuned, self.measured(Path(scratch) / "aligned"), None)

    def measured(self, folder: Path) -> Measured:
        """Sampled answers to the held-out queries, judged by rule, and drift from the base."""
        lm = load_language_model(open_model_folder(folder))
        found = good_rate(
            lm,
            read_queries(self.folder / "heldout.jsonl").queries,
            WORLDS[self.world].judge,
            self.form,
            samples=self.samples,
            seed=self.seed,
            batch_size=self.batch_size,
            max_new_tokens=ANSWER_TOKENS,
        )
        lines = (self.folder / "good_documents.jsonl").read_text("utf-8").splitlines()
        texts = (self.folder / "neutral.txt").read_text("utf-8").splitlines()
        return Measured(
            found,
            answer_loss(lm, [json.loads(line) for line in lines], self.form, batch_size=self.batch_size),
            kl_on_texts(self.base, lm, texts, self.form, batch_size=self.batch_size),
        )


def open_bench(folder: Path, *, samples: int, batch_size: int, seed: int, method: str = AUTO) -> Bench:
    """Read a world's folder, as `examples.train` wrote it.

    Raises:
        BadInputError: no such world, or a base that cannot be loaded.
    """
    file = folder / "measured.json"
    if not file.is_file():
        raise BadInputError(f"{folder} is no world: {file} is missing; give a folder that examples.train wrote")
    measured = json.loads(file.read_text("utf-8"))
    base = load_language_model(open_model_folder(folder / "base"))
    form = prompt_form(base.tokenizer, measured.get("prompt_template"))
    return Bench(folder, base, form, measured["world"], samples, batch_size, seed, method)


def run(bench: Bench, out: Path, percents: Sequence[float], size: int, settings: DpoSettings) -> list[Point]:
    """All points, those that are there already taken from their files.

    Raises:
        BadInputError: the folder holds points of other settings, or TRL is missing.
    """
    check_installed("trl", "peft")
    world_preferences(WORLDS[bench.world], size, bench.seed)  # refused before anything runs
    key = {
        "base": asdict(bench.base.folder.fingerprint),
        "preferences": size,
        "dpo": settings.as_json(),
        "samples": bench.samples,
        "batch_size": bench.batch_size,
        "seed": bench.seed,
        "method": bench.method,
    }
    points = []
    for percent in percents:
        file = out / "points" / f"{percent:g}-percent-seed{bench.seed}.json"
        if file.is_file():
            kept = json.loads(file.read_text("utf-8"))
            if kept["key"] != key:
                raise BadInputError(f"{file} was measured with other settings or another base: use another --out")
            values = kept["point"]
        else:
            print(f"seed {bench.seed}: {percent:g} % of {size} preferences", file=sys.stderr, flush=True)
            values = bench.point(percent, size, settings).to_json()
            file.parent.mkdir(parents=True, exist_ok=True)
            growing = file.with_suffix(".part")
            growing.write_text(json.dumps({"key": key, "point": values}) + "\n", encoding="utf-8")
            growing.replace(file)
        aligned = None if values["aligned"] is None else Measured.from_json(values["aligned"])
        tuned = Measured.from_json(values["tuned"])
        points.append(Point(values["percent"], values["preferences"], tuned, aligned, values["refused"]))
    return points


def table(points: Sequence[Point]) -> str:
    """The points as Markdown."""
    lines = [
        "| preference data | tuned: good answers, % | tuned: KL | then aligned: good answers, % | then aligned: KL |",
        "|---|---:|---:|---:|---:|",
    ]
    for point in points:
        data = f"{point.percent:g} % ({point.preferences})" if point.preferences else "none: the base"
        aligned = ("refused", "") if point.aligned is None else _cells(point.aligned)
        lines.append(f"| {data} | {' | '.join([*_cells(point.tuned), *aligned])} |")
    lines += [f"\n{point.percent:g} % is not aligned: {point.refused}" for point in points if point.refused]
    return "\n".join(lines)


def _cells(measured: Measured) -> tuple[str, str]:
    found = measured.rate
    return f"{100 * found.value:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]", f"{measured.kl:.4f}"


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.expedite", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--world", type=Path, default=DEMO, help="folder with base/ and the data files")
    parser.add_argument("--out", type=Path, required=True, help="folder for expedite.json, expedite.svg and the points")
    parser.add_argument("--percents", type=float, nargs="+", default=PERCENTS, metavar="P", help="of the data")
    parser.add_argument("--size", type=int, default=1000, help="preferences that 100 %% are")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--max-steps", type=int, default=None, help="of each training: only to try things out")
    parser.add_argument("--samples", type=int, default=4, help="answers to each held-out query")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0, help="of data, training, pairs and answers")
    parser.add_argument("--method", default=AUTO, help="that aligns, as `alignez-bake` takes it")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if not all(0 <= percent <= 100 for percent in options.percents):
        parser.error(f"--percents {options.percents}: each lies from 0 to 100")
    if min(options.samples, options.epochs, options.batch_size, options.threads) < 1:
        parser.error("--samples, --epochs, --batch-size and --threads are at least 1")
    torch.set_num_threads(options.threads)
    settings = DpoSettings(
        options.epochs,
        options.learning_rate,
        batch_size=DPO_BATCH,
        warm_up=0.0,  # one per cent of the data is a few steps
        seed=options.seed,
        lora=LoraShape(16),
        max_steps=options.max_steps,
    )
    try:
        bench = open_bench(
            options.world,
            samples=options.samples,
            batch_size=options.batch_size,
            seed=options.seed,
            method=options.method,
        )
        points = run(bench, options.out, sorted(set(options.percents)), options.size, settings)
    except BadInputError as error:
        parser.error(str(error))
    report = {"world": bench.world, "dpo": settings.as_json(), "points": [point.to_json() for point in points]}
    (options.out / "expedite.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    draw(points, options.out / "expedite.svg")
    print(table(points))
    return 0


if __name__ == "__main__":
    sys.exit(main())
