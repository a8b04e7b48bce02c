"""The study as tables and as a picture."""

from __future__ import annotations

from collections import Counter
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure

from alignez_bake.evaluation.rates import gap_closed
from benchmarks.feasibility_cases import STUDIED, TUNED
from benchmarks.markdown import markdown_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from benchmarks.feasibility_cases import Case, Outcome

    Found = Mapping[Case, Outcome]

_AXES: Final = {"persona": "personas", "pairs": "pairs with wrong sides", "queries": "queries"}
_COLUMNS: Final = (
    "base",
    "queries",
    "sides wrong, %",
    "predicted gain, points",
    "95 % interval",
    "verdict",
    "at the start of a run",
    "good by rule, %: base",
    "good persona",
    *(f"{method}: {what}" for method in STUDIED for what in ("good, %", "gain, points", "gap closed, %")),
)
_COLOURS: Final = {"likely": "tab:green", "unclear": "tab:orange", "unlikely": "tab:red"}
_MARKERS: Final = {"persona": "o", "pairs": "s", "queries": "^"}


def tables(found: Found) -> list[str]:
    """As Markdown: one row for each case over its seeds, then how predictions and outcomes go together."""
    lines: list[str] = []
    for axis, title in _AXES.items():
        rows = [_row(cases, found) for cases in _groups(found, axis)]
        if rows:
            lines += [f"### {title[0].upper()}{title[1:]}", "", markdown_table(_COLUMNS, rows), ""]
    return [*lines, *_agreement(found), ""]


def _groups(found: Found, axis: str) -> list[list[Case]]:
    """The cases that differ in their seed alone."""

    def key(case: Case) -> tuple[str, int, int]:
        return case.base, case.queries, case.swapped

    order = list(dict.fromkeys(key(case) for case in found if case.axis == axis))
    chosen = sorted((case for case in found if case.axis == axis), key=lambda case: (order.index(key(case)), case.seed))
    return [list(cases) for _, cases in groupby(chosen, key)]


def _row(cases: Sequence[Case], found: Found) -> tuple[str, ...]:
    first, outcomes = cases[0], [found[case] for case in cases]
    known = [outcome for outcome in outcomes if not outcome.refused]
    named = (first.base.replace("-", " "), str(first.queries), str(first.swapped))
    if not known:
        blank = [""] * (len(_COLUMNS) - len(named) - 3)
        return (*named, "", "", f"refused: {outcomes[0].refused}", *blank)
    predictions = [_prediction(outcome) for outcome in known]
    return (
        *named,
        _spread([100 * prediction["gain"]["value"] for prediction in predictions]),
        f"{100 * _mean(predictions, 'low'):.0f} to {100 * _mean(predictions, 'high'):.0f}",
        _counts([prediction["verdict"] for prediction in predictions], len(outcomes) - len(known)),
        _counts([_verdict(outcome.cheap) for outcome in known], 0),
        *(_spread([100 * (getattr(outcome, name) or 0.0) for outcome in known]) for name in ("base", "persona")),
        *(text for method in STUDIED for text in _edited(cases, found, method)),
    )


def _edited(cases: Sequence[Case], found: Found, method: str) -> tuple[str, str, str]:
    """Of one method: good answers, gain and gap closed, over the seeds that were not refused."""
    gaps = [gap for case in cases if (gap := _gap(case, found, method)) is not None]
    return (
        _spread([100 * found[case].edited[method] for case in cases if not found[case].refused]),
        _spread([100 * gain for case in cases if (gain := real_gain(found[case], method)) is not None]),
        _spread(gaps) if gaps else "",
    )


def real_gain(outcome: Outcome, method: str) -> float | None:
    """Change of the share of good answers by rule; None where nothing was edited."""
    return None if outcome.refused or outcome.base is None else outcome.edited[method] - outcome.base


def _gap(case: Case, found: Found, method: str) -> float | None:
    """Against the demo's twin, with the same seed; None where there is no twin, no edit, or no gap."""
    twins = [other for other in found if other.base == TUNED and other.seed == case.seed]
    outcome = found[case]
    if case.base == TUNED or not twins or outcome.refused or outcome.base is None:
        return None
    tuned = found[twins[0]].base
    return None if tuned is None else gap_closed(outcome.base, outcome.edited[method], tuned)


def _agreement(found: Found) -> list[str]:
    """Real gains by verdict, and the correlation of predicted and real gains over the cases, of each method."""
    by_method = {method: _points(found, method) for method in STUDIED}
    if min(map(len, by_method.values())) < 3:
        return []
    rows = []
    for method, points in by_method.items():
        for verdict in _COLOURS:
            gains = [100 * real for _, _, real, its in points if its == verdict]
            if gains:
                values = (f"{value:.0f}" for value in (sum(gains) / len(gains), min(gains), max(gains)))
                rows.append((method, verdict, str(len(gains)), *values))
    columns = ("method", "verdict", "cases and seeds", "mean gain by rule, points", "lowest", "highest")
    lines = ["### Predicted and real", "", markdown_table(columns, rows), ""]
    agreeing = []
    for method, points in by_method.items():
        for axis, title in (*_AXES.items(), (None, "all")):
            of_axis = [(predicted, real) for its, predicted, real, _ in points if axis in (None, its)]
            if len(of_axis) > 2:
                error = 100 * sum(abs(predicted - real) for predicted, real in of_axis) / len(of_axis)
                found_r = _correlation(of_axis)
                r = "none: one of them does not vary" if found_r is None else f"{found_r:.2f}"
                agreeing.append((method, title, str(len(of_axis)), r, f"{error:.0f}"))
    measures = ("method", "axis", "cases and seeds", "correlation of predicted and real", "mean absolute error, points")
    return [*lines, markdown_table(measures, agreeing)]


def _points(found: Found, method: str) -> list[tuple[str, float, float, str]]:
    """Axis, predicted gain, real gain and verdict of every case that was not refused."""
    points = []
    for case, outcome in found.items():
        real = real_gain(outcome, method)
        if real is not None:
            prediction = _prediction(outcome)
            points.append((case.axis, float(prediction["gain"]["value"]), real, str(prediction["verdict"])))
    return points


def plot(found: Found, file: Path) -> None:
    """Draw predicted against real gains, a panel a method; colours are verdicts, shapes axes, bars the intervals."""
    figure = Figure(figsize=(6 * len(STUDIED), 5.5), layout="constrained")
    for panel, method in zip(figure.subplots(1, len(STUDIED), sharey=True), STUDIED, strict=True):
        _draw(panel, found, method)
    with mpl.rc_context({"svg.hashsalt": "alignez-bake"}):
        figure.savefig(file, dpi=100, metadata={"Software": None})


def _draw(panel: Axes, found: Found, method: str) -> None:
    panel.axline((0, 0), slope=1, color="grey", linewidth=0.8, linestyle=":")
    for case, outcome in found.items():
        real = real_gain(outcome, method)
        if real is None:
            continue
        prediction = _prediction(outcome)
        gain = prediction["gain"]
        panel.errorbar(
            [100 * gain["value"]],
            [100 * real],
            xerr=[[100 * (gain["value"] - gain["low"])], [100 * (gain["high"] - gain["value"])]],
            fmt=_MARKERS[case.axis],
            color=_COLOURS[str(prediction["verdict"])],
            elinewidth=0.5,
            markersize=5,
            alpha=0.8,
        )
    for verdict, colour in _COLOURS.items():
        panel.plot([], [], color=colour, linewidth=4, label=verdict)
    for axis, marker in _MARKERS.items():
        panel.plot([], [], marker, color="grey", label=_AXES[axis])
    panel.legend(fontsize=8)
    panel.set_title(method)
    panel.set_xlabel("predicted gain, points of good answers (self-judged)")
    panel.set_ylabel("gain of the edited model by rule, points")


def _prediction(outcome: Outcome) -> dict[str, Any]:
    assert outcome.full is not None
    prediction: dict[str, Any] = outcome.full["prediction"]
    return prediction


def _verdict(figures: dict[str, Any] | None) -> str:
    return "" if figures is None else str(figures["prediction"]["verdict"])


def _mean(predictions: Sequence[dict[str, Any]], end: str) -> float:
    return sum(float(prediction["gain"][end]) for prediction in predictions) / len(predictions)


def _spread(values: Sequence[float]) -> str:
    """Mean and, of several, lowest to highest."""
    mean = f"{sum(values) / len(values):.0f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.0f} to {max(values):.0f})"


def _counts(verdicts: Sequence[str], refused: int) -> str:
    """Such as `likely`, or `likely 2, unclear 1`."""
    counts = Counter(verdicts)
    if refused:
        counts["refused"] = refused
    return next(iter(counts)) if len(counts) == 1 else ", ".join(f"{name} {count}" for name, count in counts.items())


def _correlation(points: Sequence[tuple[float, float]]) -> float | None:
    """Pearson's; None where one of the two does not vary."""
    means = [sum(values) / len(points) for values in zip(*points, strict=True)]
    centred = [(x - means[0], y - means[1]) for x, y in points]
    squares = sum(x * x for x, _ in centred) * sum(y * y for _, y in centred)
    return None if squares == 0 else float(sum(x * y for x, y in centred) / squares**0.5)
