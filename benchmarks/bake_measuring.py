"""All subjects at one size: they take turns, with the page cache warm and, at the smaller sizes, cold."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final, Literal

from alignez_bake.edit_file import write_edits
from alignez_bake.model_folder import open_model_folder
from benchmarks.bake_edits import WRITERS, plan_of, quarter_of, share_in
from benchmarks.bake_models import CONFIGS, weight_bytes, write_checkpoint
from benchmarks.bake_running import ROOT, FailedRunError, Run, clear, empty_cache, read_through, timed
from benchmarks.bake_subjects import (
    COMMAND,
    EDITED,
    INPUT,
    OURS,
    PEERS,
    PEFT,
    command_of,
    most_memory,
    too_large,
    write_merge,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from alignez_bake.progress import Progress
    from alignez_bake.site import Reads
    from benchmarks.bake_edits import Quarter
    from benchmarks.bake_subjects import Place

Cache = Literal["warm", "cold"]
MOST_COLD_BYTES: Final = 4_000_000_000
"""Of a checkpoint that is also read from the disk: larger ones take long, and say nothing new."""
_SPARE_BYTES: Final = 1_000_000_000
_COPIES: Final = 2.1
"""Of the base, on the disk at once: itself and one result, with room for the rest."""
_NEAR: Final = 0.1
_TAIL: Final = 3000


@dataclass
class SizeFigures:
    """What was found at one size.

    Attributes:
        model_type: whose layout it has.
        weights_bytes: of all tensors.
        shards: files with tensors.
        edited_layers: of the quarter.
        runs: by state of the page cache and by name, round by round.
        left_out: why a subject has no runs, by name.
        shares: of the edit of one map that each result holds, by name: 1 all, 0 none.
        cold_by: how the page cache was emptied; empty where it was not.
    """

    model_type: str
    weights_bytes: int
    shards: int
    edited_layers: list[int]
    runs: dict[Cache, dict[str, list[Run]]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    cold_by: str = ""


def figures_from_json(found: dict[str, Any]) -> SizeFigures:
    """The figures of a size as `dataclasses.asdict` gave them; what else is there is derived from them."""
    plain = {one.name: found[one.name] for one in fields(SizeFigures) if one.name != "runs"}
    runs = {
        cache: {name: [Run(**run) for run in of_name] for name, of_name in by_name.items()}
        for cache, by_name in found["runs"].items()
    }
    return SizeFigures(**plain, runs=runs)


@dataclass(frozen=True)
class Asked:
    """What to measure.

    Attributes:
        rounds: of each state of the cache.
        quarter: which layers `--link` is measured with.
        missing: why a subject cannot run on this machine, by name; None if it can.
        mergekit_python: of mergekit's environment.
        verify: check the results of ours again, off the clock.
    """

    rounds: int
    quarter: Quarter
    missing: Mapping[str, str | None]
    mergekit_python: Path | None
    verify: bool


def no_room(size: str, folder: Path) -> str | None:
    """Why a size does not fit on the disk; None if it does."""
    needed, free = _COPIES * weight_bytes(CONFIGS[size]) + _SPARE_BYTES, shutil.disk_usage(folder).free
    if needed <= free:
        return None
    return f"needs {needed / 1e9:.1f} GB on the disk of {folder}, and {free / 1e9:.1f} GB are free"


def measure_size(size: str, place: Place, asked: Asked, progress: Progress) -> SizeFigures:
    """Write a checkpoint and measure all that can run on it.

    Raises:
        SystemExit: one of ours fails, or a result does not hold what it should.
    """
    config = CONFIGS[size]
    if not (place.base / "config.json").is_file():
        if place.base.exists():  # begun by a run that was killed
            shutil.rmtree(place.base)
        write_checkpoint(config, place.base, place.shard_bytes)
    base = open_model_folder(place.base)
    layers = quarter_of(base.num_layers, asked.quarter)
    write_edits(plan_of(base, range(base.num_layers)), place.every_layer)
    write_edits(plan_of(base, range(base.num_layers), "input"), place.inputs)
    write_edits(plan_of(base, layers), place.quarter)
    write_merge(place)
    figures = SizeFigures(base.architecture.model_type, weight_bytes(config), len(base.tensors.files), [*layers])
    for name, why in asked.missing.items():
        reason = too_large(name, figures.weights_bytes) if why is None else why
        if reason is not None:
            figures.left_out[name] = reason
    if PEFT in asked.missing.keys() - figures.left_out.keys() and not place.adapter.exists():
        edits = ("--edits", str(place.every_layer), "--out", str(place.adapter))
        _ours("bake", "--model", str(place.base), *edits, "--as", "adapter")
    caches: Sequence[Cache] = ("warm", "cold") if figures.weights_bytes <= MOST_COLD_BYTES else ("warm",)
    with progress.task(f"size {size}", len(caches) * asked.rounds * len(asked.missing)) as advance:
        for cache in caches:
            figures.runs[cache] = {name: [] for name in asked.missing if name not in figures.left_out}
            for number in range(asked.rounds):
                for name in list(asked.missing)[:: -1 if number % 2 else 1]:
                    if name not in figures.left_out:
                        _measure_one(name, cache, figures, place, asked)
                    advance()
    return figures


def _measure_one(name: str, cache: Cache, figures: SizeFigures, place: Place, asked: Asked) -> None:
    clear(place.out)
    if cache == "warm":
        read_through(place.base)
    else:
        figures.cold_by = empty_cache(place.base)
    command = command_of(name, place, asked.mergekit_python)
    try:
        run = timed(command, place.base, place.out, place.log, most_memory(name))
    except FailedRunError as error:
        if name not in PEERS:
            raise SystemExit(f"{' '.join(command)} failed, {error}") from None
        figures.left_out[name] = f"failed, {error}"
        for runs in figures.runs.values():
            runs.pop(name, None)
    else:
        figures.runs[cache][name].append(run)
        if name not in figures.shares:
            figures.shares[name] = _checked_share(name, figures, place)
            if name in OURS and asked.verify:
                _ours("verify", str(place.out), "--model", str(place.base), "--level", "tensors")
    finally:
        clear(place.out)


def _checked_share(name: str, figures: SizeFigures, place: Place) -> float:
    """What a result holds of the edits, the lower one of two maps: whatever is timed must have done its work.

    Raises:
        SystemExit: it has not.
    """
    expected = 1.0 if name in EDITED else 0.0
    base, layer = open_model_folder(place.base), figures.edited_layers[0]
    reads: Reads = "input" if name == INPUT else "output"
    shares = {kind: share_in(place.out, base, layer, kind, reads) for kind in WRITERS}
    for kind, share in shares.items():
        if not abs(share - expected) <= _NEAR:
            raise SystemExit(f"{name}: its result holds {share:.3f} of an edit of {kind}, not {expected:g}")
    return min(shares.values())


def _ours(*arguments: str) -> None:
    done = subprocess.run([*COMMAND, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"alignez-bake {' '.join(arguments)} failed:\n{done.stderr[-_TAIL:]}")
