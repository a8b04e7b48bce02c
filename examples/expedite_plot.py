"""The picture of `examples.expedite`: good answers over the share of preference data, tuned and then aligned."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from examples.expedite import Measured, Point


def draw(points: Sequence[Point], file: Path) -> None:
    """Draw both curves with their 95 % intervals.

    Args:
        points: in order of their share of the data.
        file: SVG to write, the same bytes for the same points.
    """
    import matplotlib as mpl  # noqa: PLC0415 - slow to import
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    places = range(len(points))
    tuned = [(place, point.tuned) for place, point in zip(places, points, strict=True)]
    aligned = [(place, point.aligned) for place, point in zip(places, points, strict=True) if point.aligned is not None]
    for label, curve in (("DPO alone", tuned), ("DPO, then aligned without labels", aligned)):
        _draw_curve(axes, label, curve)
    axes.set_xticks(list(places), [f"{point.percent:g} %\n({point.preferences})" for point in points])
    axes.set_xlabel("preference data (pairs)")
    axes.set_ylabel("good answers, % (bars: 95 % intervals)")
    axes.set_ylim(0, 102)
    axes.legend(loc="lower right")
    with mpl.rc_context({"svg.hashsalt": "alignez-bake", "svg.fonttype": "path"}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})


def _draw_curve(axes: Axes, label: str, curve: Sequence[tuple[int, Measured]]) -> None:
    rates = [measured.rate for _, measured in curve]
    values = [100 * rate.value for rate in rates]
    below = [100 * max(rate.value - rate.low, 0) for rate in rates]
    above = [100 * max(rate.high - rate.value, 0) for rate in rates]
    axes.errorbar([place for place, _ in curve], values, yerr=[below, above], marker="o", capsize=3, label=label)
