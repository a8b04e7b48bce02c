"""The run as tables."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Final

import numpy as np

from benchmarks.bake_subjects import BAKE, COPY, INPUT, LINK, PEFT, SUBJECTS
from benchmarks.markdown import markdown_table
from benchmarks.timing import Ratio, Timings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.bake_measuring import SizeFigures
    from benchmarks.bake_running import Run

REQUIRED_BYTES: Final = 3_000_000_000
"""Of weights, from which on the requirements on seconds hold: below, starting python is most of a bake."""
MOST_TIMES_COPY: Final = {BAKE: 1.3, INPUT: 1.3, LINK: 0.6}
MOST_ANONYMOUS: Final = 500_000_000
LEAST_TIMES_PEFT: Final = 5
LEAST_MEMORY_OF_PEFT: Final = 10
_MB: Final = 1e6
_GB: Final = 1e9


def ratio_to_copy(runs: Mapping[str, Sequence[Run]], name: str) -> Ratio:
    """How many times as long as copying the base; in each round, and of medians."""
    return Ratio.of(_timings(runs[name]), _timings(runs[COPY]))


def size_table(figures: SizeFigures) -> str:
    """Seconds, beside the copy's, memory, and bytes written; one row for each subject."""
    warm, cold = figures.runs["warm"], figures.runs.get("cold", {})
    rows = []
    for name, runs in warm.items():
        row = [name, _timings(runs).text(), _ratio_text(warm, name)]
        if "cold" in figures.runs:
            row += [_timings(cold[name]).text(), _ratio_text(cold, name)] if cold.get(name) else ["", ""]
        row += [f"{median(run.anonymous for run in runs) / _MB:.0f}", f"{median(run.total for run in runs) / _MB:.0f}"]
        most = MOST_TIMES_COPY.get(name) if figures.weights_bytes >= REQUIRED_BYTES else None
        rows.append([*row, f"{runs[-1].new_bytes / _GB:.2f}", "" if most is None else f"at most {most:g} times cp"])
    columns = ["", "seconds", "times cp"]
    if "cold" in figures.runs:
        columns += ["seconds, cold", "times cp, cold"]
    return markdown_table([*columns, "anonymous, MB", "total, MB", "written, GB", "required"], rows)


def peft_line(figures: SizeFigures) -> str | None:
    """How much longer peft takes than a bake of the same edits, and how much more it holds; None if not measured."""
    warm = figures.runs["warm"]
    if not (warm.get(BAKE) and warm.get(PEFT)):
        return None
    ratio = Ratio.of(_timings(warm[PEFT]), _timings(warm[BAKE]))
    anonymous, total = (
        median(getattr(run, kind) for run in warm[PEFT]) / median(getattr(run, kind) for run in warm[BAKE])
        for kind in ("anonymous", "total")
    )
    line = (
        f"peft takes {ratio.medians:.2f} ({ratio.low:.2f} to {ratio.high:.2f}) times as long as bake, with "
        f"{anonymous:.1f} times the anonymous and {total:.1f} times the total memory"
    )
    required = f"; required: at least {LEAST_TIMES_PEFT} and {LEAST_MEMORY_OF_PEFT}"
    if figures.weights_bytes < REQUIRED_BYTES:
        required = ""
    if not warm.get(INPUT):
        return f"{line}{required}."
    of_input = Ratio.of(_timings(warm[PEFT]), _timings(warm[INPUT]))
    return f"{line}{required}; {of_input.medians:.2f} times as long as a bake of edits that read the input."


def memory_table(sizes: Mapping[str, SizeFigures]) -> str:
    """Peak of anonymous memory by size, and how it grows."""
    rows = []
    required = f"below {MOST_ANONYMOUS / _MB:.0f}; largest over smallest 0.9 to 1.1"
    for name in SUBJECTS:
        peaks = anonymous_peaks(sizes, name)
        if not peaks:
            continue
        row = [name, *(f"{peaks[size] / _MB:.0f}" if size in peaks else "" for size in sizes)]
        growth = slope(sizes, name)
        if growth is None:
            row += ["", ""]
        else:
            smallest, *_, largest = peaks.values()
            row += [f"{growth * _GB / _MB:.1f}", f"{largest / smallest:.2f}"]
        rows.append([*row, required if name in MOST_TIMES_COPY else ""])
    headings = [f"{size} ({figures.weights_bytes / _GB:.2f} GB)" for size, figures in sizes.items()]
    return markdown_table(["anonymous, MB", *headings, "slope, MB a GB", "largest over smallest", "required"], rows)


def anonymous_peaks(sizes: Mapping[str, SizeFigures], name: str) -> dict[str, float]:
    """Median of the peaks of a subject, bytes by size; without sizes at which it has none."""
    return {
        size: float(median(run.anonymous for run in runs))
        for size, figures in sizes.items()
        if (runs := figures.runs["warm"].get(name))
    }


def slope(sizes: Mapping[str, SizeFigures], name: str) -> float | None:
    """Bytes of anonymous memory for each byte of weights, of the line of least squares; None below two sizes."""
    peaks = anonymous_peaks(sizes, name)
    if len(peaks) < 2:
        return None
    return float(np.polyfit([sizes[size].weights_bytes for size in peaks], list(peaks.values()), 1)[0])


def _timings(runs: Sequence[Run]) -> Timings:
    return Timings(tuple(run.wall for run in runs), tuple(run.processor for run in runs))


def _ratio_text(runs: Mapping[str, Sequence[Run]], name: str) -> str:
    if name == COPY:
        return "1"
    ratio = ratio_to_copy(runs, name)
    return f"{ratio.medians:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
