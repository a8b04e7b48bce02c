"""The run as a picture: seconds beside those of a copy, and memory, both over size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, NullFormatter

from benchmarks.bake_subjects import COPY, SUBJECTS
from benchmarks.bake_tables import anonymous_peaks, ratio_to_copy

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from matplotlib.axes import Axes

    from benchmarks.bake_measuring import SizeFigures

_TOP: Final = 1.0
_CROSS_STEP: Final = 0.04
"""Of the height: crosses of several at one size do not hide each other."""


def plot(sizes: Mapping[str, SizeFigures], file: Path) -> None:
    """Draw medians; bars reach from the lowest to the highest ratio of a round.

    A cross at the top stands at a size at which one that ran at others could not.
    """
    figure = Figure(figsize=(8, 7.5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    for number, name in enumerate(SUBJECTS):
        if any(figures.runs["warm"].get(name) for figures in sizes.values()):
            _draw(name, sizes, above, below, number)
    for axes in (above, below):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.grid(visible=True, which="both", alpha=0.2)
        axes.yaxis.set_major_formatter(LogFormatter())
        axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    above.set_ylabel("seconds, sync included,\nover those of cp -r")
    below.set_ylabel("peak of anonymous memory, MB")
    below.set_xlabel("weights, GB")
    weights = [figures.weights_bytes / 1e9 for figures in sizes.values()]
    below.set_xticks(weights, [f"{one:.2g}" for one in weights])
    figure.legend(loc="outside upper center", ncols=2, fontsize=8)
    figure.savefig(file, dpi=100, metadata={"Software": None})


def _draw(name: str, sizes: Mapping[str, SizeFigures], above: Axes, below: Axes, number: int) -> None:
    color = f"C{number}"
    if name == COPY:  # which holds no memory to speak of
        above.axhline(1, color=color, label=name)
        return
    ran = [figures for figures in sizes.values() if figures.runs["warm"].get(name)]
    weights = [figures.weights_bytes / 1e9 for figures in ran]
    ratios = [ratio_to_copy(figures.runs["warm"], name) for figures in ran]
    # A ratio of medians need not lie among those of the rounds.
    bars = [
        [max(ratio.medians - ratio.low, 0) for ratio in ratios],
        [max(ratio.high - ratio.medians, 0) for ratio in ratios],
    ]
    middle = [ratio.medians for ratio in ratios]
    above.errorbar(weights, middle, yerr=bars, marker="o", markersize=4, capsize=3, color=color, label=name)
    peaks = [peak / 1e6 for peak in anonymous_peaks(sizes, name).values()]
    below.plot(weights, peaks, marker="o", markersize=4, color=color)
    missed = [figures.weights_bytes / 1e9 for figures in sizes.values() if figures not in ran]
    for axes in (above, below):
        top = [_TOP - number * _CROSS_STEP] * len(missed)
        axes.plot(missed, top, "x", color=color, transform=axes.get_xaxis_transform())
