"""Does the prediction hold? `python -m benchmarks.feasibility --out DIR`.

Bases that obey their personas more or less, pairs whose sides are partly wrong, few queries: of each what
`explain --feasibility` predicts, beside what the edits of two methods then do, judged by rule. Trained bases and
finished cases stay in DIR: the same command goes on where an interrupted one stopped.
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
from benchmarks.circumstances import circumstances
from benchmarks.feasibility_cases import OBEDIENCES, TUNED, Bench, Outcome, study_bases, study_cases
from benchmarks.feasibility_models import STEPS
from benchmarks.feasibility_tables import plot, tables
from benchmarks.worlds import DEMO

if TYPE_CHECKING:
    from benchmarks.feasibility_cases import Case


def main(arguments: list[str]) -> None:
    """Run from the command line."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    store = CaseStore(options.out / "cases", {"samples": options.samples, "batch_size": options.batch_size})
    bases = study_bases(options.obedience, options.steps)
    cases = study_cases(list(bases), options.seeds)
    if options.trained_only:
        there = {name for name, base in bases.items() if base.obedience is None or (options.out / base.name).exists()}
        cases = [case for case in cases if case.base in there | {TUNED}]
    benches: dict[str, Bench] = {}
    missing = [case for case in cases if store.get(case) is None]
    with RichProgress().task("cases", len(missing)) as advance:
        for case in missing:
            if case.base not in benches:
                folder = DEMO / TUNED if case.base == TUNED else bases[case.base].folder(options.out)
                benches[case.base] = Bench(folder, batch_size=options.batch_size, samples=options.samples)
            store.put(case, benches[case.base].measure(case))
            advance()
    found = {case: outcome for case in cases if (outcome := store.get(case)) is not None}
    around = circumstances("benchmarks.feasibility", arguments)
    text = "\n".join([*tables(found), *around.lines(), ""])
    result = {
        "circumstances": asdict(around),
        "cases": [{"case": asdict(case), "outcome": asdict(outcome)} for case, outcome in found.items()],
    }
    (options.out / "feasibility.md").write_text(text, encoding="utf-8")
    (options.out / "feasibility.json").write_text(json.dumps(result, separators=(",", ":")) + "\n", encoding="utf-8")
    plot(found, options.out / "feasibility.png")
    print(text)


class CaseStore:
    """Finished cases as files."""

    def __init__(self, folder: Path, settings: dict[str, int]) -> None:
        """Open the folder, or make it.

        Args:
            folder: of the cases.
            settings: everything that the figures depend on beside what a case says.

        Raises:
            SystemExit: the folder holds cases that were measured with other settings.
        """
        folder.mkdir(parents=True, exist_ok=True)
        file, text = folder / "settings.json", json.dumps(settings) + "\n"
        if file.is_file() and file.read_text(encoding="utf-8") != text:
            raise SystemExit(f"{folder} holds figures of other settings: use another --out")
        file.write_text(text, encoding="utf-8")
        self._folder = folder

    def get(self, case: Case) -> Outcome | None:
        """What a case gave, or None if it is still to be measured."""
        file = self._folder / f"{case.name}.json"
        return Outcome(**json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None

    def put(self, case: Case, outcome: Outcome) -> None:
        """Keep it; the file appears whole or not at all."""
        file = self._folder / f"{case.name}.json"
        growing = file.with_suffix(".part")
        growing.write_text(json.dumps(asdict(outcome)) + "\n", encoding="utf-8")
        growing.replace(file)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.feasibility",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for bases, cases, figures, table and plot")
    parser.add_argument("--obedience", type=int, nargs="*", default=list(OBEDIENCES), help="bases to train, per cent")
    parser.add_argument("--trained-only", action="store_true", help="train nothing: only the bases that are there")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0")
    parser.add_argument("--samples", type=int, default=2, help="answers to each held-out query")
    parser.add_argument("--steps", type=int, default=STEPS, help="of training; fewer only to try things out")
    parser.add_argument("--batch-size", type=int, default=64, help="texts that run together")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
