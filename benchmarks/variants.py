"""Ideas beside the methods, measured side by side: `python -m benchmarks.variants WORLD... --out DIR`.

For each world and seed the base writes pairs, each variant is fitted to them, and what it answers to other queries is
judged by the rule that made the world, beside base, persona in the prompt, tuned twin, and the methods as they are. KL
is measured on every second neutral text of the world; variants that read neutral texts read the others. Finished
figures stay in DIR: the same command goes on where an interrupted one stopped, and with `--finished-only` it measures
nothing and prints what there is.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch

from alignez_bake.errors import BadInputError
from alignez_bake.lowering.hooks import edited_by_hooks
from alignez_bake.progress import RichProgress
from benchmarks.cells import Cell, CellStore, Measured
from benchmarks.circumstances import circumstances
from benchmarks.measuring import run_settings
from benchmarks.subjects import REFERENCES
from benchmarks.variants_bed import VariantBed, bench_and_texts
from benchmarks.variants_tables import variants_tables
from benchmarks.variants_tried import VARIANTS
from benchmarks.world_folder import read_world


def main(arguments: list[str]) -> None:
    """Run from the command line."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    worlds = {world.name: world for world in map(read_world, options.worlds)}
    store = CellStore(options.out, run_settings(list(worlds.values()), options.batch_size))
    benches = {name: bench_and_texts(world, options.out, options.batch_size) for name, world in worlds.items()}
    # One variant in all worlds before the next one, and one seed of all: an interrupted run can compare what it has.
    cells = [
        Cell(world, subject, None, seed, "all", options.samples)
        for seed in range(options.seeds)
        for subject in (*REFERENCES, *options.variants)
        for world in worlds
    ]
    if not options.finished_only:
        missing = [cell for cell in cells if store.get(cell) is None]
        with RichProgress().task("variants", len(missing)) as advance:
            for cell in missing:
                bench, fitted_on = benches[cell.world]
                store.put(cell, measured(VariantBed(bench, fitted_on, cell.seed), cell))
                advance()
    found = {cell: figures for cell in cells if (figures := store.get(cell)) is not None}
    around = circumstances("benchmarks.variants", arguments)
    answers = f"Seeds 0 to {options.seeds - 1} of pairs and answers, {options.samples} answers to each held-out query."
    lines = [*variants_tables(found, list(worlds), options.variants), answers, "", *around.lines(), ""]
    text = "\n".join(lines)
    (options.out / "variants.md").write_text(text, encoding="utf-8")
    runs = [{**asdict(cell), **asdict(figures)} for cell, figures in found.items()]
    result = {"circumstances": asdict(around), "runs": runs}
    (options.out / "variants.json").write_text(json.dumps(result) + "\n", encoding="utf-8")
    print(text)


def measured(bed: VariantBed, cell: Cell) -> Measured:
    """The figures of one variant or reference, with one seed."""
    bench = bed.bench
    if cell.subject in REFERENCES:
        return bench.measure(cell)
    bench.pairs(cell.seed)  # not part of the fit's seconds
    began = time.process_time()
    try:
        made = VARIANTS[cell.subject].make(bed)
    except BadInputError as error:
        return Measured(refused=str(error))
    seconds = {"fit": time.process_time() - began}
    editing = partial(edited_by_hooks, made.lm.model, made.lm.architecture, made.plan)
    return replace(bench.figures(cell, made.lm, editing=editing, seconds=seconds), pairs=made.pairs)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.variants", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("worlds", type=Path, nargs="+", metavar="WORLD", help="folder written by examples.train")
    parser.add_argument("--out", type=Path, required=True, help="folder for figures and tables")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--seeds", type=int, default=2, help="number of seeds, from 0")
    parser.add_argument("--samples", type=int, default=4, help="answers to each held-out query")
    parser.add_argument("--finished-only", action="store_true", help="measure nothing; tables of what is finished")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
