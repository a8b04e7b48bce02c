"""What all figures of the page have in common: their size, their labels, and their scales."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from alignez_bake.report.html.inline_svg import inline_svg
from alignez_bake.report.markdown import one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH: Final = 360
"""Of a figure, in units of the picture: those of a phone's screen, so that its text has its own size there."""
_LABEL_LENGTH: Final = 30
# Wider than this, a linear scale would put most values on one place.
_LOG_FROM: Final = 30
# From so many decades on, two labels in each would touch.
_MANY_DECADES: Final = 2


class Drawing(NamedTuple):
    """A figure for the page.

    Attributes:
        name: its id.
        svg: an `<svg>` element; all text of others in it is escaped.
        title: short.
        caption: what it shows, for everyone.
    """

    name: str
    svg: str
    title: str
    caption: str


def drawing(figure: Figure, name: str, title: str, caption: str) -> Drawing:
    """A figure as it stands in the page."""
    return Drawing(name, inline_svg(figure, name, title, caption), title, caption)


def label(text: str) -> str:
    """A text as a figure can show it: ASCII, since a figure has one font, and cut to the room that there is."""
    line = one_line(text).encode("ascii", "replace").decode("ascii")
    return line if len(line) <= _LABEL_LENGTH else f"{line[: _LABEL_LENGTH - 3]}..."


def scale(axes: Axes, which: Literal["x", "y"], values: Sequence[float]) -> None:
    """A logarithmic scale where positive values are far apart, a linear one elsewhere; labels are plain numbers.

    Args:
        axes: of the figure.
        which: of its two axes.
        values: all that are drawn along it, at least one.
    """
    axis = axes.xaxis if which == "x" else axes.yaxis
    if min(values) <= 0 or max(values) < _LOG_FROM * min(values):
        axis.set_major_locator(MaxNLocator(6))
        return
    decades = math.log10(max(values) / min(values))
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis.set_major_locator(LogLocator(subs=(1.0, 3.0) if decades < _MANY_DECADES else (1.0,)))
    axis.set_major_formatter(FuncFormatter(_plain))
    axis.set_minor_formatter(NullFormatter())


def _plain(value: float, _: int | None = None) -> str:
    return f"{value:g}"
