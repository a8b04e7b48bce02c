"""The study of rounding as tables and as a picture."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, TypeVar

from matplotlib.figure import Figure

from benchmarks.figures import Spread
from benchmarks.markdown import markdown_table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from benchmarks.rounding import Case, LogitsCase

_Value = TypeVar("_Value")

_LEGEND = (
    "Each cell: share of the edit that is stored / noise over edit, ‖W' - W - ΔW‖ / ‖ΔW‖ / noise over edit on what the "
    "maps read, ‖(W' - W - ΔW) Z‖ / ‖ΔW Z‖. Means over seeds, ± half of their range where that is 0.01 or more."
)


def tables(
    cases: Sequence[Case], logits: Sequence[LogitsCase], nanoseconds: Mapping[str, Sequence[float]]
) -> list[str]:
    """Lines of Markdown."""
    lines = [_LEGEND, ""]
    for matrix in _seen(case.matrix for case in cases):
        for dtype in _seen(case.dtype for case in cases):
            chosen = [case for case in cases if (case.matrix, case.dtype) == (matrix, dtype)]
            lines += [f"### {matrix}, {dtype}", "", _matrix_table(chosen), ""]
    for dtype in _seen(case.dtype for case in logits):
        of_dtype = [case for case in logits if case.dtype == dtype]
        lines += [f"### Logits of the demo, rank 4, all layers, {dtype}", "", _logits_table(of_dtype), ""]
    rows = [(name, Spread.of(sorted(values)[1:-1]).text(1)) for name, values in nanoseconds.items()]
    lines += ["### Nanoseconds a value, one thread", "", markdown_table(("", "mean, without the extremes"), rows), ""]
    return lines


def _matrix_table(cases: Sequence[Case]) -> str:
    schemes = _seen(case.scheme for case in cases)
    cells: dict[tuple[int, float, str], list[Case]] = defaultdict(list)
    for case in cases:
        cells[case.rank, case.size, case.scheme].append(case)
    rows = []
    for rank, size in _seen((case.rank, case.size) for case in sorted(cases, key=lambda case: (case.rank, -case.size))):
        row = [f"rank {rank}, {size:.0e}"]
        for scheme in schemes:
            found = cells[rank, size, scheme]
            parts = (
                _text([case.share for case in found]),
                _text([case.residual for case in found]),
                _text([case.on_activations for case in found]),
            )
            row.append(" / ".join(parts))
        rows.append(row)
    return markdown_table(("edit", *schemes), rows)


def _logits_table(cases: Sequence[LogitsCase]) -> str:
    schemes = _seen(case.scheme for case in cases)
    rows = []
    for size in _seen(case.size for case in cases):
        of_size = [case for case in cases if case.size == size]
        row = [f"{size:.0e}", f"{Spread.of([case.kl_of_edit for case in of_size]).mean:.1e}"]
        for scheme in schemes:
            found = [case for case in of_size if case.scheme == scheme]
            kl = Spread.of([case.kl / case.kl_of_edit for case in found]).mean
            share, noise = _text([case.share for case in found]), _text([case.residual for case in found])
            row.append(f"{share} / {noise} / {kl:.2g}")
        rows.append(row)
    columns = ("size", "KL of the edit", *(f"{name}: share / noise / KL over the edit's" for name in schemes))
    return markdown_table(columns, rows)


def _text(values: Sequence[float]) -> str:
    """The mean to three digits; with half the range over seeds where that is more than a hundredth."""
    spread = Spread.of(values)
    half = (spread.high - spread.low) / 2
    text = f"{spread.mean:.3f}" if spread.mean < 10 else f"{spread.mean:.1f}"
    return f"{text} ± {half:.2f}" if half >= 0.01 else text


def _seen(values: Iterable[_Value]) -> list[_Value]:
    return list(dict.fromkeys(values))


def plot(cases: Sequence[Case], file: Path) -> None:
    """Share and noise against the size of the edit, rank 4, bf16; one column a kind of matrix."""
    chosen = [case for case in cases if case.rank == 4 and case.dtype == "bf16"]
    matrices, schemes = _seen(case.matrix for case in chosen), _seen(case.scheme for case in chosen)
    panels: tuple[tuple[str, Callable[[Case], float]], ...] = (
        ("delivered share", lambda case: case.share),
        ("noise over edit", lambda case: case.residual),
        ("noise over edit, on activations", lambda case: case.on_activations),
    )
    figure = Figure(figsize=(3 * len(matrices), 8), layout="constrained")
    grid = figure.subplots(len(panels), len(matrices), sharex=True, sharey="row", squeeze=False)
    for axes_row, (label, of) in zip(grid, panels, strict=True):
        for axes, matrix in zip(axes_row, matrices, strict=True):
            for scheme in schemes:
                points: dict[float, list[float]] = defaultdict(list)
                for case in chosen:
                    if (case.matrix, case.scheme) == (matrix, scheme):
                        points[case.size].append(of(case))
                sizes = sorted(points)
                spreads = [Spread.of(points[size]) for size in sizes]
                (line,) = axes.plot(sizes, [s.mean for s in spreads], marker="o", markersize=3, label=scheme)
                low, high = [s.low for s in spreads], [s.high for s in spreads]
                axes.fill_between(sizes, low, high, color=line.get_color(), alpha=0.15)
            axes.set_xscale("log")
            if label != panels[0][0]:
                axes.set_yscale("log")
            if axes is axes_row[0]:
                axes.set_ylabel(label)
    for axes, matrix in zip(grid[0], matrices, strict=True):
        axes.set_title(f"{matrix}, rank 4, bf16", fontsize=9)
    grid[0][0].legend(fontsize=8)
    for axes in grid[-1]:
        axes.set_xlabel("‖ΔW‖ / ‖W‖")
    figure.savefig(file, dpi=100, metadata={"Software": None})
