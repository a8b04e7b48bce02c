"""The protocol of AlignEZ's main table (arXiv 2406.03642), for whoever has models, data sets and a judge.

    python -m benchmarks.paper --models NAME=BASE ... --tuned NAME=DIR ... --datasets NAME=QUERIES[@OBJECTIVE] ...
        --judge http://localhost:8000/v1 --judge-model MODEL --aspects helpful="more helpful" ... --out out/paper

Every base writes its own pairs and is aligned by this tool, once for each objective, with its default choice of method
and strength unless --method names one. Where the choice finds no edit that is better than the base, the user is left
with the base: its row says so, and counts the base's own answers as ours. Base, aligned and tuned model answer the
queries of every data set; the judge compares them, a server in both orders. For each aspect:

    net win                of ours over the base, Win % - Lose %, and of the tuned model over the base
    relative improvement   100 · net win of ours / net win of the tuned model

The paper takes three architectures and six data sets, and a large model as the judge. Finished parts stay in --out: the
same command goes on where an interrupted one stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from alignez_bake import align, evaluate
from alignez_bake.asked_fit import AUTO
from alignez_bake.errors import AlignezBakeError, BadInputError
from alignez_bake.evaluation.judge_kinds import JudgeOptions, judge_named
from alignez_bake.evaluation.protocol import BASE, OURS, TUNED, pair_name
from alignez_bake.model_folder import open_model_folder
from alignez_bake.pipeline import read_asked
from alignez_bake.progress import RichProgress
from alignez_bake.prompts.queries import read_queries
from benchmarks.circumstances import circumstances
from benchmarks.paper_tables import Cell, deviations, paper_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alignez_bake.commands.align import AlignResult

BY_RULE: Final = "by rule"
_SERVERS: Final = ("http://", "https://")


@dataclass(frozen=True)
class DataSet:
    """A file of queries, and what the models are aligned to for it."""

    queries: Path
    objective: str


@dataclass(frozen=True)
class Plan:
    """What is run, checked before anything is.

    Attributes:
        models: by name the folder of a base.
        tuned: by the same names the folder of its tuned twin.
        datasets: by name.
        aspects: by name the criterion that a server is told; one without, for judges that have none.
        judge: as `alignez-bake eval` takes it.
        judge_model: of a server.
        judge_key_env: of a server.
        pair_queries: what the bases write pairs to; the tool's own unless given.
        objectives_file: of the user's own objectives.
        prompt_template: of all models; each one's own form unless given.
        method: that aligns; `auto`: the tool's own choice.
        samples: answers to each query.
        max_new_tokens: of an answer.
        batch_size: texts that run together.
        device: where the models run.
        seed: of everything.
    """

    models: dict[str, Path]
    tuned: dict[str, Path]
    datasets: dict[str, DataSet]
    aspects: dict[str, str | None]
    judge: str
    judge_model: str | None
    judge_key_env: str | None
    pair_queries: Path | None
    objectives_file: Path | None
    prompt_template: str | None
    method: str
    samples: int
    max_new_tokens: int
    batch_size: int
    device: str
    seed: int

    def options(self, aspect: str) -> JudgeOptions:
        """What the judge is told of an aspect."""
        return JudgeOptions(model=self.judge_model, criterion=self.aspects[aspect], key_env=self.judge_key_env)

    def check(self, out: Path) -> None:
        """Find what will not work before anything runs.

        Args:
            out: as `run` is given it; what is aligned there already is not checked again.

        Raises:
            BadInputError: names that do not agree, an unknown method or judge, a file or folder that cannot be read, a
                query that is both learned from and evaluated on, or what `align` refuses.
        """
        if sorted(self.models) != sorted(self.tuned):
            raise BadInputError(
                f"--models has {', '.join(sorted(self.models))} and --tuned {', '.join(sorted(self.tuned))}: each base "
                "needs its tuned twin under the same name"
            )
        for aspect in self.aspects:
            judge_named(
                self.judge, self.options(aspect), device=self.device, batch_size=self.batch_size, seed=self.seed
            )
        for folder in (*self.models.values(), *self.tuned.values()):
            open_model_folder(folder)
        for name, data in self.datasets.items():
            asked = read_asked(data.objective, self.objectives_file, self.pair_queries)
            learned = {query["query"] for query in asked.queries}
            shared = [query["query"] for query in read_queries(data.queries).queries if query["query"] in learned]
            if shared:
                raise BadInputError(
                    f"data set {name} and the queries of the pairs share {len(shared)}, such as {shared[0][:60]!r}: "
                    "evaluate on others, or give other --pair-queries"
                )
        for model in self.models:
            for objective in self.objectives:
                place = _Place.of(out, model, objective)
                if not place.finished:
                    _align(self, model, objective, place.aligned, dry_run=True)

    @property
    def objectives(self) -> tuple[str, ...]:
        """Of all data sets, each once."""
        return tuple(dict.fromkeys(data.objective for data in self.datasets.values()))


@dataclass(frozen=True)
class _Place:
    """Where the model of one base and objective lies, or the reason why there is none.

    Attributes:
        aligned: its folder.
        nothing: a file with the reason of a choice that found nothing better than the base.
    """

    aligned: Path
    nothing: Path

    @classmethod
    def of(cls, out: Path, model: str, objective: str) -> _Place:
        aligned = out / "aligned" / f"{model}-{objective}"
        return cls(aligned, aligned.with_name(f"{aligned.name}.nothing-helps.json"))

    @property
    def finished(self) -> bool:
        return self.nothing.is_file() or (self.aligned / "config.json").is_file()

    @property
    def reason(self) -> str | None:
        """Why nothing was chosen; None where there is a model."""
        return str(json.loads(self.nothing.read_text(encoding="utf-8"))["reason"]) if self.nothing.is_file() else None


def run(plan: Plan, out: Path) -> list[Cell]:
    """All cells: align each base, let all models answer, and have them judged.

    Args:
        plan: checked.
        out: folder of the aligned models and of the evaluations.

    Raises:
        BadInputError: anything that is refused.
        CheckFailedError: an aligned model that fails its certificate.
    """
    cells = []
    for model, base in plan.models.items():
        for name, data in plan.datasets.items():
            place = _Place.of(out, model, data.objective)
            if not place.finished:
                _make(plan, model, data.objective, place)
            # What the user is left with.
            ours = place.aligned if place.reason is None else base
            for aspect in plan.aspects:
                judged = out / "eval" / f"{model}-{name}-{aspect}".replace(" ", "_")
                report = _evaluated(plan, model, ours, dataset=name, aspect=aspect, out=judged)
                cells.append(_cell(report, model, name, aspect, nothing_helps=place.reason))
    return cells


def _make(plan: Plan, model: str, objective: str, place: _Place) -> None:
    """Align a base, or keep why no edit is better than it: the search is not run again for that."""
    place.aligned.parent.mkdir(parents=True, exist_ok=True)
    made = _align(plan, model, objective, place.aligned)
    if made.tuned is None or made.tuned.fitted is not None:
        made.raise_if_failed()
        return
    growing = place.nothing.with_suffix(".part")
    tuning = made.tuned.tuning
    growing.write_text(json.dumps({"reason": tuning.reason, "tuning": tuning.to_json()}) + "\n", encoding="utf-8")
    growing.replace(place.nothing)


def _align(plan: Plan, model: str, objective: str, out: Path, *, dry_run: bool = False) -> AlignResult:
    return align(
        plan.models[model],
        out,
        objective=objective,
        objectives_file=plan.objectives_file,
        queries=plan.pair_queries,
        prompt_template=plan.prompt_template,
        method=plan.method,
        device=plan.device,
        seed=plan.seed,
        batch_size=plan.batch_size,
        dry_run=dry_run,
        progress=RichProgress(),
    )


def _evaluated(plan: Plan, model: str, ours: Path, *, dataset: str, aspect: str, out: Path) -> dict[str, Any]:
    file = out / "eval.json"
    if not file.is_file():
        out.parent.mkdir(parents=True, exist_ok=True)
        evaluate(
            plan.models[model],
            ours,
            plan.datasets[dataset].queries,
            judge=plan.judge,
            judge_options=plan.options(aspect),
            tuned=plan.tuned[model],
            out=out,
            prompt_template=plan.prompt_template,
            samples=plan.samples,
            max_new_tokens=plan.max_new_tokens,
            seed=plan.seed,
            batch_size=plan.batch_size,
            device=plan.device,
            progress=RichProgress(),
        )
    report: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return report


def _cell(report: dict[str, Any], model: str, dataset: str, aspect: str, *, nothing_helps: str | None) -> Cell:
    pairs = report["pairs"]
    ours, tuned = pairs[pair_name((OURS, BASE))], pairs[pair_name((TUNED, BASE))]
    return Cell(model, dataset, aspect, ours["net_win"], tuned["net_win"], nothing_helps)


def main(arguments: list[str]) -> int:
    """Run from the command line."""
    options = _parser().parse_args(arguments)
    try:
        plan = _plan(options)
        plan.check(options.out)
        torch.set_num_threads(options.threads)
        settings = json.dumps(_settings(plan), indent=2, sort_keys=True) + "\n"
        options.out.mkdir(parents=True, exist_ok=True)
        kept = options.out / "settings.json"
        if kept.is_file() and kept.read_text(encoding="utf-8") != settings:
            raise BadInputError(f"--out {options.out} holds figures of other models or settings: use another folder")
        kept.write_text(settings, encoding="utf-8")
        cells = run(plan, options.out)
    except AlignezBakeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    types = [open_model_folder(folder).architecture.model_type for folder in plan.models.values()]
    notes = deviations(types, len(plan.datasets), by_server=plan.judge.startswith(_SERVERS), samples=plan.samples)
    around = circumstances("benchmarks.paper", arguments)
    text = "\n".join([paper_table(cells), "", *notes, "", *around.lines(), ""])
    result = {"circumstances": asdict(around), "cells": [cell.to_json() for cell in cells], "deviations": notes}
    (options.out / "paper.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (options.out / "paper.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


def _plan(options: argparse.Namespace) -> Plan:
    """The command line as a plan.

    Raises:
        BadInputError: a value that is no NAME=VALUE, a name that is given twice, or a number below 1.
    """
    if min(options.samples, options.max_new_tokens, options.batch_size, options.threads) < 1:
        raise BadInputError("--samples, --max-new-tokens, --batch-size and --threads are at least 1")
    datasets = {}
    for name, value in _named("--datasets", options.datasets).items():
        file, _, objective = value.partition("@")
        datasets[name] = DataSet(Path(file), objective or "helpful")
    aspects: dict[str, str | None] = {BY_RULE: None}
    if options.aspects:
        aspects = dict(_named("--aspects", options.aspects))
    elif options.judge.startswith(_SERVERS):
        raise BadInputError(
            "--aspects is missing: say how a server tells the better answer, such as helpful='more helpful'"
        )
    return Plan(
        models={name: Path(value) for name, value in _named("--models", options.models).items()},
        tuned={name: Path(value) for name, value in _named("--tuned", options.tuned).items()},
        datasets=datasets,
        aspects=aspects,
        judge=options.judge,
        judge_model=options.judge_model,
        judge_key_env=options.judge_key_env,
        pair_queries=options.pair_queries,
        objectives_file=options.objectives_file,
        prompt_template=options.prompt_template,
        method=options.method,
        samples=options.samples,
        max_new_tokens=options.max_new_tokens,
        batch_size=options.batch_size,
        device=options.device,
        seed=options.seed,
    )


def _named(option: str, values: Sequence[str]) -> dict[str, str]:
    named: dict[str, str] = {}
    for value in values:
        name, equals, rest = value.partition("=")
        if not (equals and name and rest) or "/" in name:
            raise BadInputError(f"{option} {value!r}: give NAME=VALUE, with a name that can be part of a file's")
        if name in named:
            raise BadInputError(f"{option} has {name!r} twice: give each its own name")
        named[name] = rest
    return named


def _settings(plan: Plan) -> dict[str, Any]:
    """What the figures depend on."""
    values = {key: value for key, value in asdict(plan).items() if key not in {"models", "tuned", "datasets"}}
    folders = {**plan.models, **{f"{name} tuned": folder for name, folder in plan.tuned.items()}}
    return {
        **{key: None if value is None else str(value) for key, value in values.items()},
        "models": {name: asdict(open_model_folder(folder).fingerprint) for name, folder in folders.items()},
        "datasets": {name: [str(data.queries), data.objective] for name, data in plan.datasets.items()},
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.paper", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", required=True, metavar="NAME=BASE")
    parser.add_argument("--tuned", nargs="+", required=True, metavar="NAME=DIR", help="the yardstick of each")
    parser.add_argument("--datasets", nargs="+", required=True, metavar="NAME=QUERIES[@OBJECTIVE]")
    parser.add_argument("--judge", required=True, help="as `alignez-bake eval` takes it")
    parser.add_argument("--judge-model")
    parser.add_argument("--judge-key-env", metavar="VARIABLE")
    parser.add_argument("--aspects", nargs="+", metavar="NAME=CRITERION", help="of a server: the better answer is ...")
    parser.add_argument("--pair-queries", type=Path, help="that the bases write pairs to; the tool's own if left out")
    parser.add_argument("--objectives-file", type=Path)
    parser.add_argument("--prompt-template")
    parser.add_argument("--method", default=AUTO, help="as `alignez-bake` takes it: auto, the default, or a name")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=1, help="answers to each query")
    parser.add_argument("--max-new-tokens", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
