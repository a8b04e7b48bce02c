"""Figures of sites as lines over layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from alignez_bake.report.html.report_data import can_be_drawn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from alignez_bake.report.html.report_data import SiteFigures

_QUANTITIES: Final[dict[str, Callable[[SiteFigures], float | None]]] = {
    "strength": lambda site: site.strength,
    "norm of the edit": lambda site: site.edit_norm,
    "share explained by the fit": lambda site: site.explained,
    "relative change of the weight": lambda site: site.relative_change,
}
MAX_SPECTRA: Final = 3
"""Most kinds of spectra that are drawn."""


class SiteSeries(NamedTuple):
    """One line.

    Attributes:
        label: kind of site, and the objective where there are several.
        layers: in order.
        values: one a layer.
    """

    label: str
    layers: tuple[int, ...]
    values: tuple[float, ...]


def quantities(sites: Sequence[SiteFigures]) -> dict[str, list[SiteSeries]]:
    """By name, the quantities that are known of at least two layers and not the same everywhere."""
    found = {name: _series(sites, value_of) for name, value_of in _QUANTITIES.items()}
    return {
        name: lines
        for name, lines in found.items()
        if max((len(line.layers) for line in lines), default=0) > 1
        and len({value for line in lines for value in line.values}) > 1
    }


def spectra_of(sites: Sequence[SiteFigures]) -> dict[str, list[tuple[SiteSeries, ...]]]:
    """By name of the spectrum, for each kind of site one line for each place in it, the largest values first."""
    found: dict[str, list[tuple[SiteSeries, ...]]] = {}
    for name in list(dict.fromkeys(name for site in sites for name in site.spectra))[:MAX_SPECTRA]:
        longest = max(len(site.spectra.get(name, ())) for site in sites)
        by_label: dict[str, list[SiteSeries]] = {}
        for place in range(longest):
            for line in _series(sites, lambda site, at=place, of=name: _at(site.spectra.get(of, ()), at)):  # type: ignore[misc]
                by_label.setdefault(line.label, []).append(line)
        if by_label:
            found[name] = [tuple(lines) for lines in by_label.values()]
    return found


def _at(values: Sequence[float], place: int) -> float | None:
    return values[place] if place < len(values) else None


def _series(sites: Sequence[SiteFigures], value_of: Callable[[SiteFigures], float | None]) -> list[SiteSeries]:
    several = len({site.objective for site in sites}) > 1
    by_label: dict[str, dict[int, float]] = {}
    for site in sites:
        value = value_of(site)
        if site.layer is None or not can_be_drawn(value):
            continue
        label = f"{site.kind}, {site.objective or 'no objective'}" if several else site.kind
        by_label.setdefault(label, {})[site.layer] = value
    return [SiteSeries(label, *zip(*sorted(values.items()), strict=True)) for label, values in by_label.items()]
