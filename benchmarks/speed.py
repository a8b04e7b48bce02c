"""Time what the command line spends its time on: `python -m benchmarks.speed WORLD --out DIR`.

Two comparisons on the base of a world, whose tasks take turns in every round:

pairs       writing pairs with the command line's batch size, against one query at a time. "At a time" has two
            honest readings, and both are shown: both sides of a query in a batch of two, and one text at a time.
recording   what the default method records, against the same forward passes with nothing recorded.

Figures hold for an idle machine; the load before and after stands beside them.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch
from matplotlib.figure import Figure

from alignez_bake.commands.align import align
from alignez_bake.language_model.loading import load_language_model
from alignez_bake.model_folder import open_model_folder
from alignez_bake.progress import RichProgress
from benchmarks.circumstances import circumstances, load_average
from benchmarks.markdown import markdown_table
from benchmarks.speed_tasks import SpeedTasks
from benchmarks.timing import Ratio, taking_turns
from benchmarks.world_folder import read_world

if TYPE_CHECKING:
    from benchmarks.timing import Timings

DEFAULT_BATCH_SIZE: Final[int] = signature(align).parameters["batch_size"].default
REQUIRED_SPEED_UP: Final = 6.0
MOST_OVERHEAD: Final = 0.10
_BOTH_SIDES = "one query at a time, both sides in a batch of 2"
_ONE_TEXT = "one text at a time"
_RECORDING = "recording"
_PASSES = "the same passes, nothing recorded"


def main(arguments: list[str]) -> None:
    """Run from the command line."""
    options = _parser().parse_args(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    world = read_world(options.world)
    lm = load_language_model(open_model_folder(world.base))
    everything = SpeedTasks(lm, world.asked, options.batch_size, options.seed, world.prompt_template)
    tasks = everything.with_queries(options.queries)
    load_before = load_average()
    timings: dict[str, Timings] = {}
    batched = f"batches of {options.batch_size}"
    if "pairs" in options.parts:
        for batch_size in (options.batch_size, 2, 1):
            tasks.with_queries(1).write_pairs(batch_size)  # what is done once is done before the clock runs
        timings |= taking_turns(
            {
                batched: lambda: tasks.write_pairs(options.batch_size),
                _BOTH_SIDES: lambda: tasks.write_pairs(2),
                _ONE_TEXT: lambda: tasks.write_pairs(1),
            },
            runs=options.runs,
            title="writing pairs",
            progress=RichProgress(),
        )
    if "recording" in options.parts:
        tasks.record()
        tasks.run_only()
        timings |= taking_turns(
            {_PASSES: tasks.run_only, _RECORDING: tasks.record},
            runs=options.runs,
            title="recording",
            progress=RichProgress(),
        )
    ratios = _ratios(timings, batched)
    around = circumstances("benchmarks.speed", arguments)
    loads = (load_before, load_average())
    lines = [
        f"### {world.name}, {options.queries} queries, {options.runs} rounds, seed {options.seed}",
        "",
        _table(timings, ratios),
        "",
        f"Load average before {loads[0]:.1f}, after {loads[1]:.1f}.",
        "",
        *around.lines(),
        "",
    ]
    text = "\n".join(lines)
    result = {
        "circumstances": asdict(around),
        "world": world.name,
        "queries": options.queries,
        "runs": options.runs,
        "seed": options.seed,
        "load_before_and_after": loads,
        "seconds": {name: asdict(timing) for name, timing in timings.items()},
        "ratios": {name: asdict(ratio) for name, ratio in ratios.items()},
    }
    (options.out / "speed.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (options.out / "speed.md").write_text(text, encoding="utf-8")
    _plot(timings, options.out / "speed.png")
    print(text)


def _ratios(timings: dict[str, Timings], batched: str) -> dict[str, Ratio]:
    ratios = {name: Ratio.of(timings[name], timings[batched]) for name in (_BOTH_SIDES, _ONE_TEXT) if name in timings}
    if _RECORDING in timings:
        ratios[_RECORDING] = Ratio.of(timings[_RECORDING], timings[_PASSES])
    return ratios


def _table(timings: dict[str, Timings], ratios: dict[str, Ratio]) -> str:
    required = {
        _BOTH_SIDES: f"at least {REQUIRED_SPEED_UP:g}",
        _ONE_TEXT: f"at least {REQUIRED_SPEED_UP:g}",
        _RECORDING: f"at most {1 + MOST_OVERHEAD:g}",
    }
    rows = []
    for name, timing in timings.items():
        ratio = ratios[name].text(2) if name in ratios else "1"
        rows.append((name, timing.text(), ratio, required.get(name, "")))
    return markdown_table(("", "seconds, median (lowest to highest)", "times the first", "required"), rows)


def _plot(timings: dict[str, Timings], file: Path) -> None:
    figure = Figure(figsize=(8, 0.6 * len(timings) + 1), layout="constrained")
    axes = figure.subplots()
    names = list(timings)[::-1]
    axes.boxplot([timings[name].wall for name in names], orientation="horizontal", tick_labels=names, whis=(0, 100))
    axes.set_xscale("log")
    axes.set_xlabel("seconds")
    figure.savefig(file, dpi=100, metadata={"Software": None})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("world", type=Path, metavar="WORLD", help="folder written by examples.train")
    parser.add_argument("--out", type=Path, required=True, help="folder for figures, table and plot")
    parser.add_argument("--parts", nargs="+", choices=("pairs", "recording"), default=("pairs", "recording"))
    parser.add_argument("--queries", type=int, default=200, help="how many of the world's queries")
    parser.add_argument("--runs", type=int, default=5, help="rounds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=DEFAULT_BATCH_SIZE, help="the command line's by default")
    parser.add_argument("--threads", type=int, default=None, help="of torch; its own choice by default")
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
