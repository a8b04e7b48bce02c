"""The run as a picture: seconds beside those of a copy, and memory, both over size."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from benchmarks.bake_subjects import COPY, SUBJECTS
from benchmarks.bake_tables import anonymous_peaks, ratio_to_copy

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from benchmarks.bake_measuring import SizeFigures


def plot(sizes: Mapping[str, SizeFigures], file: Path) -> None:
    """Draw medians; bars reach from the lowest to the highest ratio of a round. A size without a point has no run."""
    figure = Figure(figsize=(8, 7), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    for number, name in enumerate(SUBJECTS):
        ran = [figures for figures in sizes.values() if figures.runs["warm"].get(name)]
        if not ran:
            continue
        weights = [figures.weights_bytes / 1e9 for figures in ran]
        color = f"C{number}"
        if name == COPY:  # which holds no memory to speak of
            above.axhline(1, color=color, label=name)
            continue
        ratios = [ratio_to_copy(figures.runs["warm"], name) for figures in ran]
        middle = [ratio.medians for ratio in ratios]
        # A ratio of medians need not lie among those of the rounds.
        bars = [
            [max(ratio.medians - ratio.low, 0) for ratio in ratios],
            [max(ratio.high - ratio.medians, 0) for ratio in ratios],
        ]
        above.errorbar(weights, middle, yerr=bars, marker="o", markersize=4, capsize=3, color=color, label=name)
        peaks = [peak / 1e6 for peak in anonymous_peaks(sizes, name).values()]
        below.plot(weights, peaks, marker="o", markersize=4, color=color)
    for axes in (above, below):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.grid(visible=True, which="both", alpha=0.2)
    above.set_ylabel("seconds, sync included,\nover those of cp -r")
    below.set_ylabel("peak of anonymous memory, MB")
    below.set_xlabel("weights, GB")
    above.legend(fontsize=8)
    figure.savefig(file, dpi=100, metadata={"Software": None})
