"""What stands on the page: every value as text, every table as rows, what is missing by name."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from alignez_bake.report.html.report_data import (
        CertificateFigure,
        MeasuredRate,
        ReportData,
        RoutedEdit,
        Sample,
        SearchPoint,
        SiteFigures,
    )

MAX_SAMPLES: Final = 40
MAX_ROWS: Final = 1200
"""Most rows of a table: a page stays one that a phone can show."""
_SPECTRUM_LISTED: Final = 6
_FULL_FROM, _FULL_TO = 1e3, 1e6
_NOTHING: Final = "–"
_PERCENT: Final = "\N{NO-BREAK SPACE}%"
_TONES: Final = {"passed": "good", "failed": "bad", "inconclusive": "unsure"}
_LEVELS: Final = {
    "tensors": "What is stored, compared with the formula; everything else, byte for byte, with the base.",
    "forward": "The result, loaded from disk as its users load it, run beside the base with hooks.",
}
_ROUTES: Final = {
    "fold": "folded into tensors that were there",
    "rehome": "moved into an equivalent model that has room for them",
    "insert": "inserted as modules",
    "carry": "carried along as records",
    "refuse": "refused",
}


class Table(NamedTuple):
    """A table of text.

    Attributes:
        label: what it lists, for those who do not see it.
        columns: headings.
        rows: cells, as many as columns.
        numeric: places of columns that hold numbers.
        cut: how many further rows there were.
    """

    label: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: frozenset[int] = frozenset()
    cut: int = 0


class Tile(NamedTuple):
    """A headline figure: `tone` is `good`, `bad`, `unsure` or empty."""

    label: str
    value: str
    detail: str
    tone: str = ""


class Level(NamedTuple):
    """A level of the certificate."""

    name: str
    verdict: str
    tone: str
    explanation: str
    reasons: tuple[str, ...]
    table: Table | None


@dataclass(frozen=True)
class Contents:
    """The page without its figures; what is None or empty is left out.

    Attributes:
        tiles: headline figures.
        tone: of the verdict.
        rates: all rates.
        levels: of the certificate.
        samples: those that are shown.
        samples_cut: how many further ones there were.
        samples_differing: how many of those shown have another answer after.
        front: candidates on the front, and the chosen one.
        candidates: all of them, where the front is not all.
        sites: the fit, site by site.
        routes: routes with their edits.
        tensors: the edited tensors.
        settings: name and value.
        missing: what was not measured or not recorded.
    """

    tiles: tuple[Tile, ...]
    tone: str
    rates: Table | None
    levels: tuple[Level, ...]
    samples: tuple[Sample, ...]
    samples_cut: int
    samples_differing: int
    front: Table | None
    candidates: Table | None
    sites: Table | None
    routes: Table | None
    tensors: Table | None
    settings: Table | None
    missing: tuple[str, ...]


def contents_of(data: ReportData) -> Contents:
    """The page's text."""
    best = [point for point in data.frontier if point.on_front or point.chosen]
    rest = len(best) < len(data.frontier)
    return Contents(
        tiles=tuple(_tiles(data)),
        tone=_TONES.get(data.verdict or "", ""),
        rates=_rates(data.rates) if data.rates else None,
        levels=tuple(
            Level(
                level.level,
                level.verdict,
                _TONES.get(level.verdict, ""),
                _LEVELS.get(level.level, ""),
                level.reasons,
                _certificate(level.level, level.figures) if level.figures else None,
            )
            for level in data.levels
        ),
        samples=data.samples[:MAX_SAMPLES],
        samples_cut=max(0, len(data.samples) - MAX_SAMPLES),
        samples_differing=sum(sample.before != sample.after for sample in data.samples[:MAX_SAMPLES]),
        front=_frontier("The front and the chosen candidate", best) if best else None,
        candidates=_frontier("All candidates", data.frontier) if rest else None,
        sites=_sites(data.sites) if data.sites else None,
        routes=_routes(data.routes) if data.routes else None,
        tensors=_tensors(data) if data.tensors else None,
        settings=table("Settings", ("setting", "value"), data.settings) if data.settings else None,
        missing=tuple(_missing(data)),
    )


def table(label: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, numeric: Iterable[int] = ()) -> Table:
    """A table of at most `MAX_ROWS` rows."""
    cells = [tuple(row) for row in rows]
    return Table(label, tuple(columns), tuple(cells[:MAX_ROWS]), frozenset(numeric), max(0, len(cells) - MAX_ROWS))


def number(value: float | None) -> str:
    """Three digits; whole numbers, and large ones up to a million, in full; a dash for what is not known."""
    if value is None:
        return _NOTHING
    if not math.isfinite(value):
        return "not finite"
    if isinstance(value, int):
        return str(value)
    return f"{value:.0f}" if _FULL_FROM <= abs(value) < _FULL_TO else f"{value:.3g}"


def percent(share: float | None) -> str:
    """A share with at most one digit behind the point."""
    if share is None:
        return _NOTHING
    if not math.isfinite(share):
        return "not finite"
    return f"{100 * share:.1f}".removesuffix(".0") + _PERCENT


def interval(low: float, high: float) -> str:
    """Both ends as per cent."""
    return f"{percent(low).removesuffix(_PERCENT)} to {percent(high)}"


def _tiles(data: ReportData) -> Iterable[Tile]:
    yield from _verdict_tile(data)
    for judge in dict.fromkeys(rate.judge for rate in data.rates):
        of_judge = {rate.model: rate for rate in data.rates if rate.judge == judge}
        ours, base = of_judge.get("aligned"), of_judge.get("base")
        if ours is not None:
            before = "" if base is None else f"base {percent(base.value)}; "
            detail = f"{before}95 % interval {interval(ours.low, ours.high)}"
            yield Tile(f"Good answers, judged by {judge}", percent(ours.value), detail)
    if data.drift is not None:
        yield _drift_tile(data)
    if data.routes:
        counts = {route: sum(edit.route == route for edit in data.routes) for route in _ROUTES}
        parts = ", ".join(f"{count} {_ROUTES[route]}" for route, count in counts.items() if count)
        yield Tile("Edits", str(len(data.routes)), parts or ", ".join(dict.fromkeys(e.route for e in data.routes)))


def _verdict_tile(data: ReportData) -> Iterable[Tile]:
    if data.verdict is None:
        yield Tile("Certificate", "none", "nothing was checked", "unsure")
        return
    levels = " and ".join(level.level for level in data.levels)
    detail = f"level{'s' if len(data.levels) > 1 else ''} {levels}" if levels else "no level is recorded"
    yield Tile("Certificate", data.verdict, detail, _TONES.get(data.verdict, ""))


def _drift_tile(data: ReportData) -> Tile:
    drift = data.drift
    assert drift is not None
    where = f", on {drift.measured_on}" if drift.measured_on else ""
    if drift.budget is None:
        return Tile("KL from the base", number(drift.kl), f"nats a token{where}; no budget was set")
    within = drift.kl <= drift.budget  # a KL that is not a number is not within
    return Tile(
        "KL from the base",
        number(drift.kl),
        f"nats a token{where}; {'within' if within else 'beyond'} the budget of {number(drift.budget)}",
        "good" if within else "bad",
    )


def _rates(rates: Sequence[MeasuredRate]) -> Table:
    rows = [
        (
            rate.model,
            rate.judge,
            percent(rate.value),
            interval(rate.low, rate.high),
            number(rate.total),
        )
        for rate in rates
    ]
    columns = ("model", "judged by", "good answers", "95 % interval", "answers")
    return table("Rates of good answers", columns, rows, numeric=(2, 3, 4))


def _certificate(level: str, figures: Sequence[CertificateFigure]) -> Table:
    columns = ["figure", "found", "must be", "edit moves"]
    rows = [[figure.name, figure.value, figure.bound, figure.moved] for figure in figures]
    # A column that no figure has says nothing.
    kept = [place for place in range(4) if place < 2 or any(row[place] for row in rows)]
    return table(
        f"Certificate, level {level}",
        [columns[place] for place in kept],
        ([row[place] for place in kept] for row in rows),
        numeric=range(1, len(kept)),
    )


def _frontier(label: str, points: Sequence[SearchPoint]) -> Table:
    rows: list[tuple[str, ...]] = [
        (
            point.name,
            percent(point.rate),
            percent(point.standard_error),
            number(point.kl),
            ", ".join(word for word, holds in (("chosen", point.chosen), ("front", point.on_front)) if holds),
        )
        for point in points
    ]
    columns: tuple[str, ...] = ("candidate", "rate", "standard error", "KL, nats", "")
    if any(point.out for point in points):
        columns = (*columns, "left behind because")
        rows = [(*row, point.out) for row, point in zip(rows, points, strict=True)]
    return table(label, columns, rows, numeric=(1, 2, 3))


def _sites(sites: Sequence[SiteFigures]) -> Table:
    """One row a site; columns that no site has are left out."""
    spectra = list(dict.fromkeys(name for site in sites for name in site.spectra))
    others = list(dict.fromkeys(name for site in sites for name in site.others))
    cells: dict[str, list[str]] = {
        "site": [site.site for site in sites],
        "objective": [site.objective or "" for site in sites],
        "strength": [number(site.strength) for site in sites],
        "rank": [number(site.rank) for site in sites],
        "edit norm": [number(site.edit_norm) for site in sites],
        "explained": [percent(site.explained) for site in sites],
        "relative change": [number(site.relative_change) for site in sites],
        **{_words(name): [_listed(site.spectra.get(name, ())) for site in sites] for name in spectra},
        **{_words(name): [number(site.others.get(name)) for site in sites] for name in others},
        "left out because": [site.skipped for site in sites],
    }
    kept = {name: column for name, column in cells.items() if any(cell not in {"", _NOTHING} for cell in column)}
    words = [place for place, name in enumerate(kept) if name not in {"site", "objective", "left out because"}]
    return table("The fit, site by site", tuple(kept), zip(*kept.values(), strict=True), numeric=words)


def _listed(values: Sequence[float]) -> str:
    shown = " ".join(number(value) for value in values[:_SPECTRUM_LISTED])
    more = len(values) - _SPECTRUM_LISTED
    return f"{shown} and {more} more" if more > 0 else shown or _NOTHING


def _words(name: str) -> str:
    return name.replace("_", " ")


def _routes(routes: Sequence[RoutedEdit]) -> Table:
    """Edits that go the same way for the same reason share a row."""
    grouped: dict[tuple[str, str, str, str], list[RoutedEdit]] = {}
    for edit in routes:
        grouped.setdefault((edit.route, edit.reason, edit.exactness, edit.cost), []).append(edit)
    rows = [
        (_ROUTES.get(route, route), sites_in_words(edits), str(len(edits)), reason, exactness, cost)
        for (route, reason, exactness, cost), edits in grouped.items()
    ]
    columns = ("what was done", "sites", "edits", "why", "exactness", "cost")
    return table("What was done with each edit", columns, rows, numeric=(2,))


def sites_in_words(edits: Iterable[RoutedEdit]) -> str:
    """`attn_write 0-5, 7 (helpful); embed`: the layers of each kind and objective, runs of them as ranges."""
    layers: dict[tuple[str, str | None], set[int]] = {}
    for edit in edits:
        layers.setdefault((edit.kind, edit.objective), set()).update([] if edit.layer is None else [edit.layer])
    parts = []
    for (kind, objective), found in layers.items():
        # Consecutive layers have the same difference to their place in the list.
        runs = [list(run) for _, run in groupby(enumerate(sorted(found)), key=lambda pair: pair[1] - pair[0])]
        ranges = [f"{run[0][1]}-{run[-1][1]}" if len(run) > 1 else str(run[0][1]) for run in runs]
        parts.append(" ".join(filter(None, (kind, ", ".join(ranges), f"({objective})" if objective else ""))))
    return "; ".join(parts)


def _tensors(data: ReportData) -> Table:
    rows = [
        (tensor.name, _share(tensor.share), number(tensor.residual), number(tensor.relative_change))
        for tensor in data.tensors
    ]
    columns = ("tensor", "delivered share", "rounding over edit", "edit over weight")
    return table("Edited tensors", columns, rows, numeric=(1, 2, 3))


def _share(value: float | None) -> str:
    return number(value) if value is None or not math.isfinite(value) else f"{value:.4f}"


def _missing(data: ReportData) -> Iterable[str]:
    parts = (
        ("the certificate", data.levels),
        ("the rate of good answers", data.rates),
        ("the KL from the base", data.drift is not None),
        ("answers before and after", data.samples),
        ("a search over strengths", data.frontier),
        ("strengths and singular values of each layer", data.sites),
        ("activations before and after", data.projections),
        ("what became of each edit", data.routes),
        ("settings", data.settings),
        ("the commands that make it again", data.commands),
    )
    return [name for name, there in parts if not there]
