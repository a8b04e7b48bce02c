"""The comparison of methods as a picture: what each strength gains, and what it costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.subjects import BASE

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.comparison import WorldFigures

_LOWEST_GAP = -110
_HIGHEST_LOSS = 2.0


def plot_world(world: WorldFigures, file: Path) -> None:
    """Draw the grids of all methods: gap closed above, loss on good documents below."""
    figure = Figure(figsize=(8, 7), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    for name, method in world.methods.items():
        points = [(strength, found) for strength, found in method.grid if found.gap and found.loss]
        if not points:
            continue
        strengths = [strength for strength, _ in points]
        gaps = [found.gap for _, found in points if found.gap]
        losses = [found.loss.mean for _, found in points if found.loss]
        (line,) = above.plot(strengths, [gap.mean for gap in gaps], marker="o", markersize=3, label=name)
        above.fill_between(
            strengths, [gap.low for gap in gaps], [gap.high for gap in gaps], color=line.get_color(), alpha=0.15
        )
        below.plot(strengths, losses, marker="o", markersize=3, color=line.get_color())
        if method.default is not None and method.default.gap is not None:
            above.plot(
                [method.default_strength], [method.default.gap.mean], marker="*", markersize=12, color=line.get_color()
            )
    above.axhline(0, color="grey", linewidth=0.8)
    above.axhline(80, color="grey", linewidth=0.8, linestyle=":")
    above.set_ylim(bottom=_LOWEST_GAP, top=110)
    above.set_ylabel("gap closed, % (band: seeds; star: default)")
    above.set_title(world.name)
    above.legend(fontsize=8)
    base = world.references.get(BASE)
    if base is not None and base.loss is not None:
        below.axhline(base.loss.mean, color="grey", linewidth=0.8, linestyle=":")
    below.set_yscale("log")
    below.set_ylim(top=_HIGHEST_LOSS)
    below.set_ylabel("loss on good documents, nats\n(dotted: the base's)")
    below.set_xlabel("strength, in the method's own unit")
    with mpl.rc_context({"svg.hashsalt": "alignez-bake"}):
        figure.savefig(file, dpi=100, metadata={"Software": None})
