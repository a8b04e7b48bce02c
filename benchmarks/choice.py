"""What the default choice is worth: `python -m benchmarks.choice WORLD... --out DIR`.

For each world and seed the base writes pairs, every candidate of `--method auto` is fitted, and the search chooses one
without labels, as the tool does by default. Then the rule that made the world judges what each of them answers to other
queries: the chosen one, all the others, base, persona in the prompt, and tuned twin; base, chosen one and twin also
when the prompt asks for the bad persona. The best candidate is picked by rule on one half of the subjects and scored,
beside the chosen one, on the other half. Finished runs stay in DIR: the same command goes on where an interrupted one
stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from alignez_bake.asked_fit import AskedFit
from alignez_bake.capture.run import RECORDING
from alignez_bake.evaluation.rates import gap_closed
from alignez_bake.feasibility.assess import spread
from alignez_bake.lowering.hooks import edited_by_hooks
from alignez_bake.pipeline import read_pairs_of, write_own_pairs
from alignez_bake.progress import RichProgress
from alignez_bake.prompts.persona import persona_sentence
from alignez_bake.tuning.candidate import TunedObjective
from alignez_bake.tuning.neutral import shipped_neutral_texts
from alignez_bake.tuning.offered import TuneSettings, check_settings
from alignez_bake.tuning.search import round_name
from alignez_bake.tuning.tuner import split_queries, tune
from benchmarks.cells import Cell
from benchmarks.choice_tables import CHOSEN, choice_tables
from benchmarks.circumstances import circumstances, load_average
from benchmarks.measuring import WorldBench
from benchmarks.stopwatch import Stopwatch
from benchmarks.subjects import BASE, PROMPTED, TUNED
from benchmarks.world_folder import read_world

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from alignez_bake.edit_plan import EditPlan
    from alignez_bake.progress import Advance
    from benchmarks.cells import Measured
    from benchmarks.world_folder import WorldFolder

SAMPLES: Final = 8


def main(arguments: list[str]) -> None:
    """Run from the command line."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    runs = []
    worlds = [read_world(folder) for folder in options.worlds]
    with RichProgress().task("runs", len(worlds) * options.seeds) as advance:
        for world in worlds:
            bench = WorldBench(world, options.out, options.batch_size)
            for seed in range(options.seeds):
                runs.append(_finished(options.out, bench, seed, options.samples, options.queries))
                advance()
    around = circumstances("benchmarks.choice", arguments)
    text = "\n".join([*choice_tables(runs), "", *around.lines(), ""])
    (options.out / "choice.md").write_text(text, encoding="utf-8")
    result = {"circumstances": asdict(around), "runs": runs}
    (options.out / "choice.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(text)


def _finished(out: Path, bench: WorldBench, seed: int, samples: int, queries: int | None) -> dict[str, Any]:
    """One run, from its file where it is finished."""
    of_queries = "" if queries is None else f"-{queries}-queries"
    file = out / f"{bench.world.name.replace(' ', '-')}-seed{seed}{of_queries}-{samples}x.json"
    if file.exists():
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return found
    made = _run(bench, seed, samples, queries, out)
    growing = file.with_suffix(".part")
    growing.write_text(json.dumps(made) + "\n", encoding="utf-8")
    growing.rename(file)
    return made


def _run(bench: WorldBench, seed: int, samples: int, queries: int | None, out: Path) -> dict[str, Any]:
    world, lm = bench.world, bench.base
    settings = check_settings(lm.folder, AskedFit(seed=seed))
    assert isinstance(settings, TuneSettings)
    asked = world.asked.queries
    split = split_queries(asked if queries is None else spread(asked, queries), seed)
    began = time.process_time()
    of_pairs, _ = write_own_pairs(
        lm,
        replace(world.asked, queries=tuple(split.pairs)),
        bench.form,
        out / f"choice-pairs-{world.name.replace(' ', '_')}-seed{seed}-{len(split.pairs)}.jsonl",
        batch_size=bench.batch_size,
        seed=seed,
        progress=Stopwatch(),
    )
    pairs_seconds = time.process_time() - began
    objectives, weights = world.asked.objectives, world.asked.weights
    clock = _Clock()
    began = time.process_time()
    readings = read_pairs_of(
        lm, of_pairs.records, objectives, bench.form, joint=False, batch_size=bench.batch_size, progress=clock
    )
    tuned = tune(
        lm,
        [TunedObjective(each, weights[each.name], readings.captures[each.name]) for each in objectives],
        settings.candidates,
        split.held_out,
        bench.form,
        finer=settings.finer,
        neutral_texts=shipped_neutral_texts(),
        pairs_sha256="",
        seed=seed,
        batch_size=bench.batch_size,
        progress=clock,
    )
    tuning_seconds = time.process_time() - began - clock.capture
    plans = {planned.candidate.name: planned.plan for planned in tuned.planned if planned.plan is not None}
    figures = {
        BASE: _judged(bench, seed, samples),
        PROMPTED: bench.figures(
            _cell(world, PROMPTED, seed, samples), lm, sentence=persona_sentence(objectives[0], "good")
        ),
        TUNED: bench.figures(_cell(world, TUNED, seed, samples), bench.tuned),
        **{name: _judged(bench, seed, samples, name, plan) for name, plan in plans.items()},
    }
    chosen = tuned.result.chosen
    return {
        "world": world.name,
        "seed": seed,
        "chosen": chosen,
        "tuning": tuned.result.to_json(),
        "cpu_seconds": {"pairs": pairs_seconds, "capture": clock.capture, "tuning": tuning_seconds},
        "load": load_average(),
        "models": {
            name: {
                "good": sum(measured.good),
                "answers": samples * len(measured.good),
                "loss": measured.loss,
                "kl": measured.kl,
            }
            for name, measured in figures.items()
        },
        "under_bad_persona": _under_bad_persona(bench, seed, samples, None if chosen is None else plans[chosen]),
        "halves": _halves(world, figures, list(plans), chosen),
    }


class _Clock(Stopwatch):
    """Seconds of the processor.

    Attributes:
        capture: what the first candidates took to record; what is recorded for finer ones belongs to the search.
    """

    def __init__(self) -> None:
        super().__init__(time.process_time)
        self.capture = 0.0

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Advance]:
        """Time one task; the first round of answers ends the capture."""
        if description == round_name(1):
            self.capture = self.by_task[RECORDING]
        with super().task(description, total) as advance:
            yield advance


def _halves(
    world: WorldFolder, figures: dict[str, Measured], names: Sequence[str], chosen: str | None
) -> dict[str, Any]:
    """The candidate that the rule picks on the first half, and both on the second: gap closed, per cent."""

    def good(name: str, places: Sequence[int]) -> int:
        return sum(figures[name].good[place] for place in places)

    best = max(names, key=lambda name: good(name, world.first_half))
    scored = {
        role: gap_closed(good(BASE, world.second_half), good(name, world.second_half), good(TUNED, world.second_half))
        for role, name in (("best of grid", best), ("chosen", chosen))
        if name is not None
    }
    return {"best of grid": best, "gap": scored}


def _under_bad_persona(bench: WorldBench, seed: int, samples: int, chosen: EditPlan | None) -> dict[str, float]:
    """Good answers of base, chosen edits and tuned twin where the prompt asks for the bad persona, per cent."""
    bad = persona_sentence(bench.world.asked.objectives[0], "bad")
    judged = {
        BASE: _judged(bench, seed, samples, sentence=bad),
        TUNED: bench.figures(_cell(bench.world, TUNED, seed, samples), bench.tuned, sentence=bad),
    }
    if chosen is not None:
        judged[CHOSEN] = _judged(bench, seed, samples, CHOSEN, chosen, sentence=bad)
    return {name: 100 * sum(one.good) / samples / len(one.good) for name, one in judged.items()}


def _judged(
    bench: WorldBench,
    seed: int,
    samples: int,
    name: str = BASE,
    plan: EditPlan | None = None,
    *,
    sentence: str | None = None,
) -> Measured:
    """The base's figures, with a plan's edits in place and after a persona's sentence where there are such."""
    cell = _cell(bench.world, name, seed, samples)
    if plan is None:
        return bench.figures(cell, bench.base, sentence=sentence)
    editing = partial(edited_by_hooks, bench.base.model, bench.base.architecture, plan)
    return bench.figures(cell, bench.base, editing=editing, sentence=sentence)


def _cell(world: WorldFolder, name: str, seed: int, samples: int) -> Cell:
    return Cell(world.name, name, None, seed, "all", samples)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.choice", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("worlds", type=Path, nargs="+", metavar="WORLD", help="folder written by examples.train")
    parser.add_argument("--out", type=Path, required=True, help="folder for figures and tables")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0")
    parser.add_argument("--queries", type=int, help="that the choice gets, evenly of the world's; all unless given")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="answers to each held-out query")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
