"""Figures over layers: strengths, norms, what the fit explains, and singular values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from matplotlib.ticker import MaxNLocator

from alignez_bake.report.html.drawing import WIDTH, Drawing, drawing, label, scale
from alignez_bake.report.html.inline_svg import COLOUR, empty_figure, own_settings
from alignez_bake.report.html.site_series import SiteSeries, quantities, spectra_of
from alignez_bake.report.markdown import one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from alignez_bake.report.html.report_data import SiteFigures

SPECTRUM_SHOWN: Final = 8
"""Largest values of a spectrum that are drawn."""
# Colour and marker: colours alone tell nothing apart.
_SERIES: Final = (("accent", "o"), ("bad", "s"), ("third", "^"), ("fourth", "D"))
_HEIGHT: Final = 240
_LEGEND_ROW: Final = 17
_LEGEND_COLUMNS: Final = 2


def layer_figures(sites: Sequence[SiteFigures]) -> list[Drawing]:
    """What differs from layer to layer, one figure for each quantity; nothing where all layers are alike."""
    with own_settings():
        return [
            *(
                _quantity_figure(f"layers-{number}", name, series)
                for number, (name, series) in enumerate(quantities(sites).items(), start=1)
            ),
            *(
                _spectrum_figure(f"spectrum-{number}", name, series)
                for number, (name, series) in enumerate(spectra_of(sites).items(), start=1)
            ),
        ]


_CAPTIONS: Final = {
    "strength": "What multiplies the edits of each layer, their dial included.",
    "norm of the edit": "Frobenius norm of strength\N{NO-BREAK SPACE}·\N{NO-BREAK SPACE}L\N{NO-BREAK SPACE}Rᵀ.",
    "share explained by the fit": "Of what was to be predicted, on the tokens that it was fitted on.",
    "relative change of the weight": "Norm of the change over the norm of the weight.",
}


def _quantity_figure(name: str, quantity: str, series: Sequence[SiteSeries]) -> Drawing:
    figure, axes = _figure(len(series))
    for number, one in enumerate(series):
        role, marker = _SERIES[number % len(_SERIES)]
        axes.plot(one.layers, one.values, color=COLOUR[role], marker=marker, label=label(one.label))
    scale(axes, "y", [value for one in series for value in one.values])
    _finish(figure, axes, quantity, len(series))
    return drawing(figure, name, _capital(quantity), _CAPTIONS[quantity])


def _spectrum_figure(name: str, spectrum: str, series: Sequence[tuple[SiteSeries, ...]]) -> Drawing:
    figure, axes = _figure(len(series))
    for number, ranks in enumerate(series):
        role, marker = _SERIES[number % len(_SERIES)]
        for rank, one in enumerate(ranks[:SPECTRUM_SHOWN]):
            axes.plot(
                one.layers,
                one.values,
                color=COLOUR[role],
                marker=marker,
                markersize=5 if rank == 0 else 3.5,
                alpha=1 / (1 + 0.35 * rank),
                linewidth=1.6 if rank == 0 else 0.8,
                label=label(one.label) if rank == 0 else None,
            )
    scale(axes, "y", [value for ranks in series for one in ranks[:SPECTRUM_SHOWN] for value in one.values])
    words = spectrum.replace("_", " ")
    _finish(figure, axes, words, len(series))
    widest = max(len(ranks) for ranks in series)
    cut = f", the {SPECTRUM_SHOWN} largest of {widest}" if widest > SPECTRUM_SHOWN else ""
    return drawing(figure, name, _capital(words), f"A line for each place among them{cut}; larger ones are stronger.")


def _figure(series: int) -> tuple[Figure, Axes]:
    rows = -(-series // _LEGEND_COLUMNS) if series > 1 else 0
    return empty_figure(WIDTH, _HEIGHT + _LEGEND_ROW * rows)


def _finish(figure: Figure, axes: Axes, quantity: str, series: int) -> None:
    # With fewer than two whole numbers in sight it would show halves and tenths of layers.
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("layer")
    axes.set_ylabel(label(quantity))
    if series > 1:
        figure.legend(loc="outside lower center", ncols=_LEGEND_COLUMNS)


def _capital(text: str) -> str:
    line = one_line(text)
    return line[:1].upper() + line[1:]
