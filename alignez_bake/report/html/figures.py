"""Figures of rates, of the search, and of activations.

Each is drawn small, so that its text can still be read on a phone, and enlarged elsewhere. Colours are never alone in
telling things apart: markers differ too. Texts of others come into a figure shortened (`drawing.label`); the tables
beside it show them whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import numpy as np
from matplotlib.ticker import PercentFormatter

from alignez_bake.report.html.drawing import WIDTH, Drawing, drawing, label, scale
from alignez_bake.report.html.inline_svg import COLOUR, empty_figure, own_settings
from alignez_bake.report.html.report_data import can_be_drawn
from alignez_bake.report.markdown import one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from alignez_bake.report.html.report_data import Drift, MeasuredRate, PointCloud, Projection, SearchPoint

MAX_POINTS: Final = 400
"""Most points of a cloud that are drawn: as many as can be told apart."""
_MODELS: Final = {"base": ("muted", "s"), "aligned": ("accent", "o"), "tuned": ("third", "^")}


def rates_figure(rates: Sequence[MeasuredRate]) -> Drawing:
    """Rates with their intervals, one row each."""
    with own_settings():
        figure, axes = empty_figure(WIDTH, 56 + 26 * len(rates))
        for row, rate in enumerate(rates):
            role, marker = _MODELS[rate.model]
            # Shares, if the record is a true one; others need not have room.
            low, value, high = np.clip([rate.low, rate.value, rate.high], -1, 2)
            axes.plot([low, high], [row, row], color=COLOUR[role], linewidth=2.4, solid_capstyle="round")
            axes.plot([value], [row], marker, color=COLOUR[role], markersize=7)
        axes.set_yticks(range(len(rates)), [label(f"{rate.model}, {rate.judge}") for rate in rates])
        axes.set_ylim(len(rates) - 0.4, -0.6)
        axes.set_xlim(-0.02, 1.02)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel("good answers")
        return drawing(figure, "rates", "Rates of good answers", "Lines are 95 % intervals.")


def frontier_figure(points: Sequence[SearchPoint], drift: Drift | None = None) -> Drawing | None:
    """Rate over KL of every candidate that has both; None if none has.

    Args:
        points: the candidates.
        drift: for the budget, if there was one.
    """
    drawn = [_Place.of(point) for point in points if can_be_drawn(point.rate) and can_be_drawn(point.kl)]
    if not drawn:
        return None
    groups = (
        ("candidate", "muted", "o", 5, [place for place in drawn if place.kind == "candidate"]),
        ("on the front", "accent", "s", 5, [place for place in drawn if place.kind == "front"]),
        ("chosen", "good", "*", 13, [place for place in drawn if place.kind == "chosen"]),
    )
    with own_settings():
        figure, axes = empty_figure(WIDTH, 290)
        front = sorted((place for place in drawn if place.on_front), key=lambda place: place.kl)
        axes.plot([place.kl for place in front], [place.rate for place in front], color=COLOUR["accent"], linewidth=1.2)
        for name, role, marker, size, members in groups:
            if members:
                axes.errorbar(
                    [place.kl for place in members],
                    [place.rate for place in members],
                    yerr=[place.standard_error for place in members],
                    fmt=marker,
                    markersize=size,
                    color=COLOUR[role],
                    elinewidth=1,
                    label=name,
                )
        if drift is not None and can_be_drawn(drift.budget):
            axes.axvline(drift.budget, color=COLOUR["bad"], linestyle="--", linewidth=1.2, label="budget")
        scale(axes, "x", [place.kl for place in drawn])
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel("KL from the base, nats a token")
        axes.set_ylabel("self-judged rate")
        figure.legend(loc="outside lower center", ncols=2)
        missing = len(points) - len(drawn)
        caption = "Each candidate's rate over its distance from the base; bars are one standard error."
        caption += f" {missing} of {len(points)} lack one of the two and are not drawn." if missing else ""
        return drawing(figure, "search", "Rate over KL", caption)


def projection_figures(projection: Projection, number: int) -> list[Drawing]:
    """Good and bad activations of a site, before and, if there, after.

    Args:
        projection: the coordinates.
        number: of the site within the page.
    """
    clouds = [("before", projection.before)]
    clouds += [] if projection.after is None else [("after", projection.after)]
    together = [cloud for _, cloud in clouds]
    with own_settings():
        return [
            _cloud_figure(
                cloud,
                f"activations-{number}-{when}",
                f"{one_line(projection.site)}, {when}",
                together if projection.same_axes else [cloud],
            )
            for when, cloud in clouds
        ]


def _cloud_figure(cloud: PointCloud, name: str, title: str, limits_of: Sequence[PointCloud]) -> Drawing:
    figure, axes = empty_figure(WIDTH, 300)
    drawn = 0
    for side, points, marker, role in (("good", cloud.good, "o", "accent"), ("bad", cloud.bad, "x", "bad")):
        shown = _thinned(points)
        drawn += len(shown)
        axes.plot(shown[:, 0], shown[:, 1], marker, color=COLOUR[role], alpha=0.75, markersize=5, label=side)
    rows = np.concatenate([points for one in limits_of for points in (one.good, one.bad)])
    rows = rows[np.isfinite(rows).all(axis=1)]
    if len(rows):
        low, high = rows.min(axis=0), rows.max(axis=0)
        room = np.maximum(high - low, 1e-12) * 0.06
        axes.set_xlim(low[0] - room[0], high[0] + room[0])
        axes.set_ylim(low[1] - room[1], high[1] + room[1])
    axes.set_xlabel(f"first component, {cloud.explained[0]:.0%} of the variance")
    axes.set_ylabel(f"second component, {cloud.explained[1]:.0%}")
    figure.legend(loc="outside lower center", ncols=2)
    total = len(cloud.good) + len(cloud.bad)
    caption = f"{len(cloud.good)} good (circles) and {len(cloud.bad)} bad (crosses) activations."
    caption += f" {drawn} of {total} are drawn." if drawn < total else ""
    return drawing(figure, name, title, caption)


def _thinned(points: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """At most `MAX_POINTS` finite rows, evenly spread over their order."""
    finite: NDArray[np.floating[Any]] = points[np.isfinite(points).all(axis=1)]
    places = np.linspace(0, len(finite) - 1, min(MAX_POINTS, len(finite))).astype(int)
    return np.take(finite, places, axis=0)


class _Place(NamedTuple):
    """Where a candidate is drawn."""

    kl: float
    rate: float
    standard_error: float
    kind: Literal["candidate", "front", "chosen"]
    on_front: bool

    @classmethod
    def of(cls, point: SearchPoint) -> _Place:
        """Of one that has both figures; no bar where its error is not known."""
        assert point.kl is not None
        assert point.rate is not None
        error = point.standard_error
        known = error if can_be_drawn(error) and error > 0 else 0.0
        kind: Literal["candidate", "front", "chosen"] = "front" if point.on_front else "candidate"
        return cls(point.kl, point.rate, known, "chosen" if point.chosen else kind, point.on_front)
