"""Seconds and memory of baking a checkpoint, beside copying its files and beside other tools.

    python -m benchmarks.bake --out DIR [--sizes 0.5,1.5,3,8] [--peers] [--go-on] [--mergekit-python VENV/bin/python]

Random bf16 checkpoints with the names, shapes and shards of real ones are written under `--workdir` and deleted after.
Then these take turns, every second round backwards, each from the start of its process until its files are synced:
`cp -r` of the base; `alignez-bake bake` with edits of rank 16 at the attention and MLP writers of every layer, its
hashes and its certificate included, once with edits that read the maps' output, once their input; the same with
`--link` and edits of a quarter of the layers; and with `--peers` the merge of the same edits, as a LoRA, by peft, and
mergekit's linear merge of the base alone.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignez_bake.progress import RichProgress
from benchmarks.bake_edits import CHANGE, QUARTERS, RANK
from benchmarks.bake_measuring import Asked, figures_from_json, measure_size, no_room
from benchmarks.bake_memory import INTERVAL, available
from benchmarks.bake_models import CONFIGS, SHARD_BYTES
from benchmarks.bake_plot import plot
from benchmarks.bake_subjects import COPY, SUBJECTS, Place, missing
from benchmarks.bake_tables import memory_table, peft_line, ratio_to_copy, size_table, slope
from benchmarks.circumstances import circumstances, load_average

if TYPE_CHECKING:
    from benchmarks.bake_measuring import SizeFigures


def main(arguments: list[str]) -> None:
    """Run from the command line; what is known is written after each size."""
    options = _parser().parse_args(arguments)
    workdir = (options.out if options.workdir is None else options.workdir).resolve()
    for folder in (options.out, workdir):
        folder.mkdir(parents=True, exist_ok=True)
    reasons = {name: missing(name, peers=options.peers, mergekit_python=options.mergekit_python) for name in SUBJECTS}
    asked = Asked(options.rounds, options.quarter, reasons, options.mergekit_python, options.verify)
    heading = _heading(arguments, workdir)
    sizes = _measured_before(options.out, options.rounds) if options.go_on else {}
    skipped: dict[str, str] = {}
    for size in options.sizes:
        if size in sizes:
            continue
        reason = no_room(size, workdir)
        if reason is not None:
            skipped[size] = reason
        else:
            place = Place(workdir / f"bake-{size}-{options.shard_bytes}", options.shard_bytes)
            try:
                sizes[size] = measure_size(size, place, asked, RichProgress())
            finally:
                if not options.keep and place.folder.exists():
                    shutil.rmtree(place.folder)
        _write(options.out, options.rounds, sizes, skipped, heading)
    print((options.out / "bake.md").read_text(encoding="utf-8"))


def _measured_before(out: Path, rounds: int) -> dict[str, SizeFigures]:
    """What a run that was interrupted has written of the sizes that it finished.

    Raises:
        SystemExit: it made another number of rounds.
    """
    path = out / "bake.json"
    if not path.is_file():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    if found["rounds"] != rounds:
        raise SystemExit(f"{path} has {found['rounds']} rounds of each command, not {rounds}: use another --out")
    return {size: figures_from_json(figures) for size, figures in found["sizes"].items()}


def _heading(arguments: list[str], workdir: Path) -> dict[str, Any]:
    """What holds for all sizes."""
    found = subprocess.run(
        ["findmnt", "--noheadings", "--output", "FSTYPE", "--target", workdir],  # noqa: S607
        capture_output=True,
        text=True,
        check=True,
    )
    return {
        "circumstances": asdict(circumstances("benchmarks.bake", arguments)),
        "file_system": found.stdout.strip(),
        "available_memory_bytes": available(),
        "sampling_interval_seconds": INTERVAL,
        "rank": RANK,
        "relative_change": CHANGE,
        "load_before": load_average(),
    }


def _write(
    out: Path, rounds: int, measured: dict[str, SizeFigures], skipped: dict[str, str], heading: dict[str, Any]
) -> None:
    # However they were run: figures grow over size.
    sizes = dict(sorted(measured.items(), key=lambda entry: entry[1].weights_bytes))
    result = {
        **heading,
        "load_after": load_average(),
        "rounds": rounds,
        "sizes": {size: {**asdict(figures), "times_cp": _ratios(figures)} for size, figures in sizes.items()},
        "skipped_sizes": skipped,
        "anonymous_bytes_per_byte_of_weights": {name: slope(sizes, name) for name in SUBJECTS},
    }
    (out / "bake.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    lines = []
    for size, figures in sizes.items():
        lines += [*_size_lines(size, figures, rounds), ""]
    lines += [f"{_named(size)} is not measured: {reason}." for size, reason in skipped.items()]
    if sizes:
        lines += ["### Memory over size", "", memory_table(sizes), ""]
        plot(sizes, out / "bake.png")
    (out / "bake.md").write_text("\n".join([*lines, *_circumstance_lines(result)]), encoding="utf-8")


def _size_lines(size: str, figures: SizeFigures, rounds: int) -> list[str]:
    files = "1 file" if figures.shards == 1 else f"{figures.shards} files"
    shape = f"{figures.model_type}, {figures.weights_bytes / 1e9:.2f} GB in {files}"
    lines = [f"### {_named(size)}: {shape}, {rounds} rounds", "", size_table(figures), ""]
    compared = peft_line(figures)
    if compared is not None:
        lines += [compared, ""]
    lines += [f"Not run at this size: {name}: {reason}." for name, reason in figures.left_out.items()]
    if figures.cold_by:
        lines.append(f"Cold: page cache emptied by {figures.cold_by}.")
    return lines


def _circumstance_lines(result: dict[str, Any]) -> list[str]:
    around = result["circumstances"]
    memory = f"{result['available_memory_bytes'] / 1e9:.1f} GB of memory free before"
    load = f"Load average before {result['load_before']:.1f}, after {result['load_after']:.1f}."
    return [
        f"{result['file_system']}, {memory}. {load}",
        "",
        f"    {around['command']}",
        "",
        f"{around['processor']}, {around['cores']} cores; {around['versions']}.",
        "",
    ]


def _named(size: str) -> str:
    return size if size == "tiny" else f"{size} B parameters"


def _ratios(figures: SizeFigures) -> dict[str, dict[str, Any]]:
    """By state of the cache and name."""
    return {
        cache: {name: asdict(ratio_to_copy(runs, name)) for name in runs if name != COPY and runs[name]}
        for cache, runs in figures.runs.items()
    }


def _sizes(text: str) -> list[str]:
    sizes = text.split(",")
    if unknown := [size for size in sizes if size not in CONFIGS]:
        raise argparse.ArgumentTypeError(f"no size {unknown[0]!r}: use {', '.join(CONFIGS)}")
    return sizes


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bake", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for figures, tables and plot")
    parser.add_argument("--sizes", type=_sizes, default=["0.5", "1.5", "3", "8"], help="billions, or tiny")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workdir", type=Path, help="folder for checkpoints, on the disk to measure; --out by default")
    parser.add_argument("--shard-bytes", type=int, default=SHARD_BYTES, help="most bytes of a file of weights")
    parser.add_argument("--quarter", choices=QUARTERS, default="middle", help="of the layers, for --link")
    parser.add_argument("--peers", action="store_true", help="measure peft and mergekit as well")
    parser.add_argument("--mergekit-python", type=Path, help="python of an environment that has mergekit")
    parser.add_argument("--verify", action="store_true", help="verify the first result of ours, off the clock")
    parser.add_argument("--go-on", action="store_true", help="keep the sizes that --out holds from an earlier run")
    parser.add_argument("--keep", action="store_true", help="keep the checkpoints, and take those of an earlier run")
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
