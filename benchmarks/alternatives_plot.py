"""The comparison with alternatives as a picture: gap closed over processor seconds, and over drift."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from benchmarks.alternatives_subjects import ALTERNATIVES
from benchmarks.subjects import PROMPTED

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from benchmarks.figures import Figures

_LOWEST_GAP = -110


def plot_alternatives(world: str, figures: Mapping[str, Figures], file: Path) -> None:
    """Draw every group as a line over its lengths of training."""
    groups: dict[str, list[Figures]] = {}
    for name, one in figures.items():
        if one.gap is not None and one.kl is not None and "processor" in one.seconds:
            groups.setdefault(ALTERNATIVES[name].group, []).append(one)
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for group, points in groups.items():
        gaps = [point.gap for point in points if point.gap is not None]
        means = [gap.mean for gap in gaps]
        errors = [[gap.mean - gap.low for gap in gaps], [gap.high - gap.mean for gap in gaps]]
        seconds = [point.seconds["processor"].mean for point in points]
        drift = [point.kl.mean for point in points if point.kl is not None]
        marker = "*" if len(points) == 1 else "o"
        size = 12 if len(points) == 1 else 4
        left.errorbar(seconds, means, yerr=errors, marker=marker, markersize=size, capsize=2, label=group)
        right.errorbar(drift, means, yerr=errors, marker=marker, markersize=size, capsize=2)
    prompted = figures.get(PROMPTED)
    for axes in (left, right):
        axes.axhline(0, color="grey", linewidth=0.8)
        if prompted is not None and prompted.gap is not None:
            axes.axhline(prompted.gap.mean, color="grey", linewidth=0.8, linestyle=":")
        axes.set_xscale("log")
        axes.set_ylim(bottom=_LOWEST_GAP, top=110)
    left.set_ylabel("gap closed, % (bars: seeds; dotted: persona in the prompt)")
    left.set_xlabel("processor seconds from pairs to checkpoint")
    right.set_xlabel("KL on neutral texts, nats a token")
    left.set_title(world)
    if groups:
        left.legend(fontsize=8, loc="lower left")
    figure.savefig(file, dpi=100, metadata={"Software": None})
