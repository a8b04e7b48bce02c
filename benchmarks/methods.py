"""Compare all methods on worlds whose answers are judged by rule: `python -m benchmarks.methods WORLD... --out DIR`.

For each world it prints good answers with interval, gap closed, loss on good documents, KL on neutral texts and
seconds: every method at its untuned default over several seeds, and the best of a grid of strengths, picked on one
half of the held-out subjects and scored on the other. Finished figures stay in DIR: the same command goes on where
an interrupted one stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from alignez_bake.progress import RichProgress
from benchmarks.cells import CellStore
from benchmarks.circumstances import circumstances
from benchmarks.comparison import Comparison, Sizes
from benchmarks.comparison_plot import plot_world
from benchmarks.comparison_tables import summary_table, world_tables
from benchmarks.measuring import WorldBench, run_settings
from benchmarks.subjects import SUBJECTS
from benchmarks.world_folder import read_world

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.cells import Cell


def main(arguments: list[str]) -> None:
    """Run from the command line."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    sizes = Sizes(
        seeds=tuple(range(options.seeds)),
        samples=options.samples,
        grid_samples=options.grid_samples,
        picked_samples=options.picked_samples,
        subjects=tuple(options.methods),
    )
    worlds = [read_world(folder) for folder in options.worlds]
    options.out.mkdir(parents=True, exist_ok=True)
    store = CellStore(options.out, run_settings(worlds, options.batch_size))
    comparisons = [Comparison(world, sizes) for world in worlds]
    benches = {world.name: WorldBench(world, options.out, options.batch_size) for world in worlds}

    _run("untuned defaults", [cell for one in comparisons for cell in one.default_cells()], store, benches)
    if not options.no_grid:
        _run("grids", [cell for one in comparisons for cell in one.grid_cells()], store, benches)
        _run("best of grids", [cell for one in comparisons for cell in one.picked_cells(store.get)], store, benches)

    figures = [one.figures(store.get) for one in comparisons]
    around = circumstances("benchmarks.methods", arguments)
    tables = [summary_table(figures), "", *(world_tables(world, sizes) for world in figures)]
    text = "\n".join([*tables, *around.lines(), ""])
    (options.out / "methods.md").write_text(text, encoding="utf-8")
    result = {"circumstances": asdict(around), "sizes": asdict(sizes), "worlds": [asdict(world) for world in figures]}
    (options.out / "methods.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if not options.no_grid:
        for world in figures:
            plot_world(world, options.out / f"methods-{world.name.replace(' ', '-')}.png")
    print(text)


def _run(title: str, cells: Sequence[Cell], store: CellStore, benches: dict[str, WorldBench]) -> None:
    """Measure the cells that are not finished; progress counts answers, which are what takes time."""
    missing = [cell for cell in cells if store.get(cell) is None]
    work = {cell: cell.samples * benches[cell.world].queries_of(cell) for cell in missing}
    with RichProgress().task(title, sum(work.values())) as advance:
        for cell in missing:
            store.put(cell, benches[cell.world].measure(cell))
            advance(work[cell])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.methods", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("worlds", type=Path, nargs="+", metavar="WORLD", help="folder written by examples.train")
    parser.add_argument("--out", type=Path, required=True, help="folder for figures, tables and plots")
    parser.add_argument("--methods", nargs="+", choices=list(SUBJECTS), default=list(SUBJECTS))
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0")
    parser.add_argument("--samples", type=int, default=4, help="answers to each held-out query, at the default")
    parser.add_argument("--grid-samples", type=int, default=3, help="the same for each strength, on the first half")
    parser.add_argument("--picked-samples", type=int, default=7, help="the same for the best one, on the second half")
    parser.add_argument("--no-grid", action="store_true", help="untuned defaults only")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument(
        "--threads", type=int, default=1, help="of torch; two million parameters gain nothing from a second"
    )
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
