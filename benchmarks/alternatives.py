"""What a user would do instead, from the same pairs: `python -m benchmarks.alternatives [WORLD] --out DIR`.

The base with the persona left in the prompt, the persona distilled into a LoRA by gradient, DPO on the self-generated
pairs, this tool's default and some of its methods: good answers, gap closed, drift, processor seconds, and what
answering costs. Finished figures stay in DIR: the same command goes on where an interrupted one stopped. Needs the
extras `[dpo]` and `[benchmarks]`.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from alignez_bake.asked_fit import AUTO
from alignez_bake.errors import BadInputError
from alignez_bake.model_folder import open_model_folder
from alignez_bake.progress import RichProgress
from alignez_bake.tuning.tuned_fit import queries_to_judge
from benchmarks.alternatives_measuring import PAIRS_SEED, AlternativesBench, AnswerCost
from benchmarks.alternatives_plot import plot_alternatives
from benchmarks.alternatives_subjects import ALTERNATIVES
from benchmarks.alternatives_tables import alternatives_tables
from benchmarks.cells import Cell, CellStore, Measured
from benchmarks.circumstances import circumstances
from benchmarks.figures import Figures, Run
from benchmarks.measuring import ANSWER_TOKENS, WorldBench
from benchmarks.subjects import BASE, PAIRS, TUNED
from benchmarks.world_folder import read_world
from examples.preference_tuning import DpoSettings, check_installed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

DEMO: Final = Path(__file__).parents[1] / "examples" / "demo"
COSTS_OF: Final = "ridge"


def main(arguments: list[str]) -> None:
    """Run from the command line."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if min(options.seeds, options.samples, options.batch_size, options.threads, options.cost_rounds) < 1:
        parser.error("--seeds, --samples, --batch-size, --threads and --cost-rounds are at least 1")
    subjects = dict.fromkeys([BASE, TUNED, *options.rows])
    try:
        check_installed(*_packages(subjects))
        world = read_world(options.world)
        if AUTO in subjects:
            queries_to_judge(world.asked.queries, world.asked.weights, seed=0)  # enough of them for a choice
    except (BadInputError, FileNotFoundError) as error:
        parser.error(str(error))
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    bench = WorldBench(world, options.out, options.batch_size)
    store = CellStore(options.out, _settings(bench, options.max_steps))
    made = AlternativesBench(bench, options.max_steps)
    bench.pairs(PAIRS_SEED)  # before anything is timed

    cells = {
        name: [Cell(world.name, name, None, seed, "all", options.samples) for seed in range(options.seeds)]
        for name in ALTERNATIVES
        if name in subjects
    }
    pairs = Cell(world.name, PAIRS, None, PAIRS_SEED, "all", options.samples)
    # Seed by seed: an interrupted run is whole with fewer seeds.
    _run([pairs, *(of_row[seed] for seed in range(options.seeds) for of_row in cells.values())], store, made)
    found = {name: [measured for cell in of_row if (measured := store.get(cell))] for name, of_row in cells.items()}
    figures = _figures(found, options.samples, len(world.held_out))
    costs = _costs(options, made)

    around = circumstances("benchmarks.alternatives", arguments)
    written = _seconds(store, pairs)
    chosen = {name: [one.chosen for one in of_row if one.chosen is not None] for name, of_row in found.items()}
    tables = alternatives_tables(
        world.name, figures, costs, samples=options.samples, pairs_seconds=written["processor"], chosen=chosen
    )
    text = "\n".join([tables, *around.lines(), ""])
    result = {
        "circumstances": asdict(around),
        "world": world.name,
        "samples": options.samples,
        "settings": {name: _training(name) for name in figures},
        "pairs_seconds": written,
        "chosen": {name: names for name, names in chosen.items() if names},
        "figures": {name: asdict(one) for name, one in figures.items()},
        "costs": {name: asdict(cost) for name, cost in costs.items()},
    }
    (options.out / "alternatives.md").write_text(text, encoding="utf-8")
    (options.out / "alternatives.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    plot_alternatives(world.name, figures, options.out / "alternatives.png")
    print(text)


def _run(cells: Sequence[Cell], store: CellStore, made: AlternativesBench) -> None:
    left = [cell for cell in cells if store.get(cell) is None]
    made.warm_up(cell.subject for cell in left if cell.subject in ALTERNATIVES)
    with RichProgress().task("alternatives", len(cells)) as advance:
        advance(len(cells) - len(left))
        for cell in left:
            store.put(cell, made.measure(cell))
            advance(1)


def _seconds(store: CellStore, cell: Cell) -> dict[str, float]:
    measured = store.get(cell)
    assert measured is not None, cell
    assert measured.seconds is not None, cell
    return measured.seconds


def _figures(found: Mapping[str, Sequence[Measured]], samples: int, queries: int) -> dict[str, Figures]:
    """All rows, with the gap between base and tuned model over all seeds pooled."""
    places = tuple(range(queries))
    runs = {name: [Run(measured, samples, places) for measured in of_row] for name, of_row in found.items()}
    base, tuned = (Figures.of(runs[name]).rate.value for name in (BASE, TUNED))
    return {
        name: Figures.of(of_row, frame=None if name in {BASE, TUNED} else (base, tuned))
        for name, of_row in runs.items()
    }


def _costs(options: argparse.Namespace, made: AlternativesBench) -> dict[str, AnswerCost]:
    """What answering costs, measured once and kept; nothing where no query is to be timed."""
    if options.cost_queries < 1:
        return {}
    file: Path = options.out / "costs.json"
    key = {"queries": options.cost_queries, "batch": options.batch_size, "rounds": options.cost_rounds}
    if file.is_file():
        kept: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if kept["key"] == key:
            return {name: AnswerCost(**values) for name, values in kept["costs"].items()}
    costs = made.answer_costs(
        COSTS_OF, queries=options.cost_queries, batch=options.batch_size, rounds=options.cost_rounds
    )
    content = {"key": key, "costs": {name: asdict(cost) for name, cost in costs.items()}}
    growing = file.with_suffix(".part")
    growing.write_text(json.dumps(content) + "\n", encoding="utf-8")
    growing.replace(file)
    return costs


def _training(name: str) -> dict[str, Any] | None:
    training = ALTERNATIVES[name].training
    return None if training is None else asdict(training)


def _packages(subjects: Iterable[str]) -> list[str]:
    """What the trainings of the rows are made with."""
    trainings = [ALTERNATIVES[name].training for name in subjects]
    tuned = any(isinstance(training, DpoSettings) for training in trainings)
    return ["trl", "peft"] if tuned else ["peft"]


def _settings(bench: WorldBench, max_steps: int | None) -> dict[str, object]:
    folders = (bench.world.base, bench.world.tuned)
    return {
        "answer_tokens": ANSWER_TOKENS,
        "batch_size": bench.batch_size,
        "max_steps": max_steps,
        "models": [asdict(open_model_folder(folder).fingerprint) for folder in folders],
        "threads": torch.get_num_threads(),
        "training": {name: _training(name) for name in ALTERNATIVES},
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.alternatives",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("world", type=Path, nargs="?", default=DEMO, help="folder written by examples.train; the demo")
    parser.add_argument("--out", type=Path, required=True, help="folder for figures, table and plot")
    parser.add_argument(
        "--rows", nargs="+", choices=list(ALTERNATIVES), default=list(ALTERNATIVES), metavar="ROW", help="which; all"
    )
    parser.add_argument("--seeds", type=int, default=3, help="of training and of answers, from 0")
    parser.add_argument("--samples", type=int, default=4, help="answers to each held-out query and seed")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--cost-queries", type=int, default=64, help="queries that answering is timed on; 0: none")
    parser.add_argument("--cost-rounds", type=int, default=5, help="rounds that answering is timed in")
    parser.add_argument("--max-steps", type=int, default=None, help="of every training: only to try things out")
    parser.add_argument("--threads", type=int, default=1)
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
