"""`report.html`: one file that shows a result, and asks for nothing.

Everything that comes from models, queries and files is text of others. It passes through the template's escaping, and
before that through `_shown`, which leaves no control character, nor one that turns the direction of what follows. The
page has no script, and its policy forbids one, as it forbids everything that would be loaded.

The same data gives the same bytes.
"""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Final, NamedTuple

from jinja2 import BaseLoader, Environment, StrictUndefined, TemplateNotFound
from markupsafe import Markup

from alignez_bake.report.html.figures import frontier_figure, projection_figures, rates_figure
from alignez_bake.report.html.layer_figures import layer_figures
from alignez_bake.report.html.page_contents import contents_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from alignez_bake.report.html.drawing import Drawing
    from alignez_bake.report.html.report_data import ReportData

POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""Content-Security-Policy of the page: its own style sheet, and nothing else."""
MAX_TEXT: Final = 4000
"""Characters after which a text is cut."""
# Not printable to Python, and wanted: ends of lines, tabs, and the space before "%", at which no line ends.
_KEPT: Final = "\n\t\N{NO-BREAK SPACE}"
_TEMPLATES: Final = "alignez_bake.report.html.templates"


class _Figures(NamedTuple):
    """The drawings of each section."""

    rates: Drawing | None
    frontier: Drawing | None
    layers: list[Drawing]
    projections: list[tuple[str, list[Drawing]]]


def report_page(data: ReportData) -> str:
    """The page's HTML.

    Args:
        data: what there is to show; parts that are missing are left out, and named at the end.
    """
    template = _environment().get_template("report.html.j2")
    return template.render(data=data, page=contents_of(data), figures=_figures(data), policy=POLICY) + "\n"


def _figures(data: ReportData) -> _Figures:
    return _Figures(
        rates_figure(data.rates) if data.rates else None,
        frontier_figure(data.frontier, data.drift) if data.frontier else None,
        layer_figures(data.sites),
        [
            (projection.site, projection_figures(projection, number))
            for number, projection in enumerate(data.projections, start=1)
        ],
    )


class _PackageTemplates(BaseLoader):
    """The templates that lie in the package, wherever that is installed."""

    def get_source(self, environment: Environment, template: str) -> tuple[str, str | None, Callable[[], bool] | None]:
        """The text of one."""
        del environment
        file = resources.files(_TEMPLATES) / template
        if not file.is_file():
            raise TemplateNotFound(template)
        return file.read_text(encoding="utf-8"), None, None


def _environment() -> Environment:
    environment = Environment(
        loader=_PackageTemplates(),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    # Made here of escaped text: the one thing on the page that is markup already.
    environment.filters["drawn"] = lambda drawing: Markup(drawing.svg)  # noqa: S704
    return environment


def _shown(value: object) -> object:
    """What an expression of the template gives, as it can be shown; its markup is escaped after this."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    text = "".join(character if character.isprintable() or character in _KEPT else " " for character in value)
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]} … (cut: {len(text)} characters)"
