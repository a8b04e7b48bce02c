"""Compare ways to round edited weights: `python -m benchmarks.rounding WORLD --out DIR`.

For each kind of matrix, rank, size of the edit and dtype: how much of the edit survives, how much noise comes with it,
and how large that noise is on what the maps read. Then, on the world's base, what becomes of the logits where all
edited maps are rounded; and what rounding costs in time.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, astuple, dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import ml_dtypes
import numpy as np
import torch

from alignez_bake.language_model.loading import load_language_model
from alignez_bake.lowering.delivery import delivery_sums
from alignez_bake.lowering.rounding import round_rows
from alignez_bake.model_folder import open_model_folder
from alignez_bake.progress import RichProgress
from alignez_bake.safetensors_io.dtypes import cast_once
from benchmarks.circumstances import circumstances, load_average
from benchmarks.rounding_matrices import RANKS, demo_matrices, random_matrices
from benchmarks.rounding_running import LogitsUnder
from benchmarks.rounding_schemes import SCHEMES, Rows
from benchmarks.rounding_tables import plot, tables
from benchmarks.timing import taking_turns
from benchmarks.world_folder import read_world

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from benchmarks.rounding_matrices import Matrix
    from benchmarks.world_folder import WorldFolder

    FloatArray = NDArray[np.float32]

SIZES: Final = (1e-2, 3e-3, 1e-3, 3e-4, 1e-4)
"""Of edits, ‖ΔW‖ / ‖W‖."""
DTYPES: Final = {"bf16": np.dtype(ml_dtypes.bfloat16), "fp16": np.dtype(np.float16)}
_LOGITS_RANK: Final = 4
"""The default method's own."""
_TIMED: Final = ((1024, 1536), (192, 8960))


@dataclass(frozen=True)
class Case:
    """One way to round one kind of matrix, with one seed; figures are means over its matrices.

    Attributes:
        matrix: its name.
        dtype: of the file.
        rank: of the edit.
        size: ‖ΔW‖ / ‖W‖.
        scheme: name of the way to round.
        seed: of matrices and draws.
        share: <W' - W, ΔW> / ‖ΔW‖², W' as stored.
        residual: ‖W' - W - ΔW‖ / ‖ΔW‖.
        share_on_activations: <(W' - W) Z, ΔW Z> / ‖ΔW Z‖².
        on_activations: ‖(W' - W - ΔW) Z‖ / ‖ΔW Z‖.
    """

    matrix: str
    dtype: str
    rank: int
    size: float
    scheme: str
    seed: int
    share: float
    residual: float
    share_on_activations: float
    on_activations: float


@dataclass(frozen=True)
class LogitsCase:
    """What becomes of the logits, with one seed.

    Attributes:
        dtype, size, scheme, seed: as in `Case`.
        share: of the change of the log-probabilities that the exact edit makes.
        residual: what else changes, over that change.
        kl: KL(exact edit ‖ rounded edit), nats a token.
        kl_of_edit: KL(exact edit ‖ base): what there was to lose.
    """

    dtype: str
    size: float
    scheme: str
    seed: int
    share: float
    residual: float
    kl: float
    kl_of_edit: float


def main(arguments: list[str]) -> None:
    """Run from the command line."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    world = read_world(options.world)
    cases: list[Case] = []
    logits: list[LogitsCase] = []
    load_before = load_average()
    with RichProgress().task("rounding", options.seeds * len(DTYPES) * len(SIZES) * 5) as advance:
        for seed in range(options.seeds):
            of_demo = list(demo_matrices(world, seed, options.batch_size))
            for matrices in (of_demo, *([matrix] for matrix in random_matrices(seed))):
                cases.extend(_cases(matrices, seed, advance))
            logits.extend(_logits(world, of_demo, seed))
    timings = taking_turns(_timed(), runs=options.runs, title="timing", progress=RichProgress())
    values = {name: rows * columns for rows, columns in _TIMED for name in timings if name.endswith(f" {columns}")}
    nanoseconds = {name: [1e9 * s / values[name] for s in timing.wall] for name, timing in timings.items()}
    around = circumstances("benchmarks.rounding", arguments)
    result = {
        "circumstances": asdict(around),
        "load_before_and_after": (load_before, load_average()),
        "cases": _as_rows(cases),
        "logits": _as_rows(logits),
        "nanoseconds_a_value": nanoseconds,
    }
    text = "\n".join([*tables(cases, logits, nanoseconds), *around.lines(), ""])
    (options.out / "rounding.json").write_text(json.dumps(result, separators=(",", ":")) + "\n", encoding="utf-8")
    (options.out / "rounding.md").write_text(text, encoding="utf-8")
    plot(cases, options.out / "rounding.png")
    print(text)


def _as_rows(cases: Sequence[Case] | Sequence[LogitsCase]) -> dict[str, object]:
    """Names once, then the values of each case to five digits: thousands of cases stay a small file."""
    return {
        "columns": [field.name for field in fields(cases[0])],
        "rows": [
            [float(f"{value:.5g}") if isinstance(value, float) else value for value in astuple(case)] for case in cases
        ],
    }


def _edited(matrix: Matrix, rank: int, size: float, dtype: np.dtype[Any]) -> tuple[FloatArray, Rows]:
    """(W on the grid of the dtype, what is to be rounded) of an edit of that size."""
    base = cast_once(matrix.weight, dtype).astype(np.float32)
    change, directions = matrix.change(rank)
    scaled = (change * (size * np.linalg.norm(base) / np.linalg.norm(change))).astype(np.float32)
    return base, Rows(base + scaled, scaled, directions, dtype)


def _cases(matrices: Sequence[Matrix], seed: int, advance: Callable[[], None]) -> Iterator[Case]:
    for dtype in DTYPES:
        for size in SIZES:
            for rank in RANKS:
                edited = [_edited(matrix, rank, size, DTYPES[dtype]) for matrix in matrices]
                for scheme in SCHEMES:
                    rng = np.random.default_rng(seed)
                    figures = [
                        _figures(base, rows, SCHEMES[scheme](rows, rng), matrix.activations)
                        for (base, rows), matrix in zip(edited, matrices, strict=True)
                    ]
                    means = np.mean(figures, axis=0).tolist()
                    yield Case(matrices[0].name, dtype, rank, size, scheme, seed, *means)
            advance()


def _figures(base: FloatArray, rows: Rows, stored: FloatArray, activations: FloatArray) -> tuple[float, ...]:
    """Of one matrix: the last four of a `Case`."""
    found = delivery_sums(base, rows.change, stored).delivery("")
    assert found.share is not None
    assert found.residual is not None
    wanted = rows.change @ activations
    moved = (stored - base) @ activations
    of_edit = float(np.vdot(wanted, wanted))
    noise = float(np.linalg.norm(moved - wanted))
    return found.share, found.residual, float(np.vdot(moved, wanted)) / of_edit, noise / of_edit**0.5


def _logits(world: WorldFolder, matrices: Sequence[Matrix], seed: int) -> Iterator[LogitsCase]:
    """All edited maps at once, each with an edit of the same relative size."""
    under = LogitsUnder(load_language_model(open_model_folder(world.base)), world)
    for dtype_name, dtype in DTYPES.items():
        plain = under({matrix.place: cast_once(matrix.weight, dtype).astype(np.float32) for matrix in matrices})
        for size in SIZES:
            edited = {matrix.place: _edited(matrix, _LOGITS_RANK, size, dtype)[1] for matrix in matrices}
            exact = under({place: rows.exact for place, rows in edited.items()})
            wanted = exact - plain
            of_edit, kl_of_edit = float((wanted * wanted).sum()), _kl(exact, plain)
            for scheme, rounded in SCHEMES.items():
                rng = np.random.default_rng(seed)
                found = under({place: rounded(rows, rng) for place, rows in edited.items()})
                share = float(((found - plain) * wanted).sum()) / of_edit
                residual = float((found - exact).norm()) / of_edit**0.5
                yield LogitsCase(dtype_name, size, scheme, seed, share, residual, _kl(exact, found), kl_of_edit)


def _kl(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first.exp() * (first - second)).sum(dim=-1).mean())


def _timed() -> dict[str, Callable[[], object]]:
    tasks: dict[str, Callable[[], object]] = {}
    for rows, columns in _TIMED:
        rng = np.random.default_rng(columns)
        weight, b_matrix, a_matrix = (rng.normal(size=shape) for shape in ((rows, columns), (rows, 16), (16, columns)))
        for name, dtype in DTYPES.items():
            base = cast_once(weight, dtype).astype(np.float32)
            change = (2.5e-4 * b_matrix @ a_matrix).astype(np.float32)
            exact = base + change
            tasks[f"nearest, {name}, d_in {columns}"] = partial(round_rows, exact, dtype)
            tasks[f"carry, {name}, d_in {columns}"] = partial(round_rows, exact, dtype, change=change)
    for task in tasks.values():
        task()
    return tasks


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rounding", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("world", type=Path, metavar="WORLD", help="folder written by examples.train")
    parser.add_argument("--out", type=Path, required=True, help="folder for figures, table and plot")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0")
    parser.add_argument("--runs", type=int, default=9, help="rounds of timing")
    parser.add_argument("--batch-size", type=int, default=64, help="texts that run together where pairs are made")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
