"""An evaluation as a picture: how often each model is good, and who wins against whom."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

from alignez_bake.evaluation.protocol import pair_name

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

    from alignez_bake.evaluation.figures import Figures

MISSING: Final = "no plot: matplotlib is not installed (pip install matplotlib)"
_OUTCOMES: Final = (("win", "C0"), ("tie", "0.8"), ("lose", "C3"))


def can_plot() -> bool:
    """Whether matplotlib is there."""
    return find_spec("matplotlib") is not None


def plot(figures: Figures, file: Path) -> None:
    """Draw rates with their intervals, where the judge gives scores, and wins, ties and losses of each pair.

    Args:
        figures: what was found.
        file: SVG to write, the same bytes for the same figures.
    """
    import matplotlib as mpl  # noqa: PLC0415 - slow to import
    from matplotlib.figure import Figure  # noqa: PLC0415

    heights = [len(figures.models)] * bool(figures.models) + [len(figures.pairs)]
    figure = Figure(figsize=(7, 1.6 + 0.55 * sum(heights)), layout="constrained")
    axes = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    if figures.models:
        _rates(figures, axes[0])
    _outcomes(figures, axes[-1])
    with mpl.rc_context({"svg.hashsalt": "alignez-bake", "svg.fonttype": "path"}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})


def _rates(figures: Figures, axes: Axes) -> None:
    rates = [entry.good_rate for entry in figures.models.values()]
    values = [100 * rate.value for rate in rates]
    ends = [
        [100 * max(rate.value - rate.low, 0) for rate in rates],
        [100 * max(rate.high - rate.value, 0) for rate in rates],
    ]
    places = range(len(rates))
    axes.barh(places, values, xerr=ends, capsize=3, color=[f"C{place}" for place in places])
    axes.set_yticks(places, list(figures.models))
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("good answers, % (bars: 95 % intervals)")


def _outcomes(figures: Figures, axes: Axes) -> None:
    places = range(len(figures.pairs))
    starts = [0.0 for _ in places]
    for number, (outcome, color) in enumerate(_OUTCOMES):
        shares = []
        for pair in figures.pairs.values():
            counts = (pair.wins, pair.ties, pair.losses)
            shares.append(100 * counts[number] / max(sum(counts), 1))
        axes.barh(places, shares, left=starts, color=color, label=outcome)
        starts = [start + share for start, share in zip(starts, shares, strict=True)]
    axes.set_yticks(places, list(map(pair_name, figures.pairs)))
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("judged comparisons, %")
    axes.legend(fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
