"""Results as tables for people. Machines get `to_json` of the same objects."""

from __future__ import annotations

import sys
from itertools import groupby
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from alignez_bake.certificate.verdict import main_figures

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from alignez_bake.certificate.verdict import LevelCertificate
    from alignez_bake.commands.refitting import Refitted
    from alignez_bake.edit import Edit
    from alignez_bake.lowering.decide import Decision
    from alignez_bake.methods.protocol import SiteReport
    from alignez_bake.preference_pairs.filters import FilterReport

_WIDTH_OF_FILES: Final = 140
_VERDICT_STYLES = {"passed": "bold green", "failed": "bold red", "inconclusive": "bold yellow"}


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A plain table; every cell is shown as text, never as markup."""
    result = Table(title=Text(title), title_justify="left", title_style="bold")
    for column in columns:
        result.add_column(Text(column), overflow="fold")
    for row in rows:
        result.add_row(*(Text(_cell(value)) for value in row))
    return result


def certificate_table(levels: Sequence[LevelCertificate]) -> Table:
    """The certificate's main figures, one row each."""
    rows: list[tuple[str, str, str]] = []
    for level in levels:
        rows.append((level.level, "verdict", level.verdict))
        rows.extend((level.level, name, value) for name, value in main_figures(level))
        rows.extend((level.level, "reason", reason) for reason in level.reasons)
    result = table("Certificate", ("level", "figure", "value"), ())
    for row_level, name, value in rows:
        style = _VERDICT_STYLES.get(value, "") if name == "verdict" else ""
        result.add_row(Text(row_level), Text(name), Text(value, style=style))
    return result


def refit_table(refitted: Refitted) -> Table:
    """How much of each edit is kept where it was changed to fold, and of all of them together."""
    columns = ("edit", "now", "effect kept, held-out tokens", "where it was fitted", "tokens fitted", "held out")
    kind = {"linearised": "an affine map", "block": "reads the MLP's input"}[refitted.kind]
    rows: list[tuple[object, ...]] = [
        (
            str(report.site),
            kind,
            report.explained_variance,
            report.explained_variance_fitted,
            report.tokens,
            report.held_out_tokens,
        )
        for report in refitted.reports
    ]
    kept = (
        f"KL from the original edits {refitted.kl_kept:.3g} nats a token; of them from the base {refitted.kl_edit:.3g}"
    )
    rows.append(("all", kept, None, None, None, None))
    return table("Edits changed to fold", columns, rows)


def decision_table(decisions: Sequence[Decision]) -> Table:
    """Each route with the sites that take it and the reason; equal ones share a row."""
    grouped: dict[tuple[str, str, str, str], list[Edit]] = {}
    for decision in decisions:
        key = (decision.route, decision.reason, decision.exactness, decision.cost)
        grouped.setdefault(key, []).append(decision.edit)
    rows = [
        (route, _sites_listed(edits), reason, exactness, cost)
        for (route, reason, exactness, cost), edits in grouped.items()
    ]
    return table("Decisions", ("route", "edits", "reason", "exactness", "cost"), rows)


def _sites_listed(edits: Sequence[Edit]) -> str:
    """`attn_write 0-5, 7 (helpful)`: the layers of each kind and objective, runs of them as ranges."""
    layers: dict[tuple[str, str | None], list[int | None]] = {}
    for edit in edits:
        layers.setdefault((edit.site.kind, edit.objective), []).append(edit.site.layer)
    parts = []
    for (kind, objective), found in layers.items():
        numbers = sorted({layer for layer in found if layer is not None})
        # Consecutive layers have the same difference to their place in the list.
        runs = [list(run) for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])]
        ranges = [f"{run[0][1]}-{run[-1][1]}" if len(run) > 1 else str(run[0][1]) for run in runs]
        parts.append(" ".join(filter(None, (kind, ", ".join(ranges), f"({objective})" if objective else ""))))
    return "; ".join(parts)


def print_tables(*tables: Table | str) -> None:
    """Print to standard output; where that is no terminal, wide enough for the tables."""
    console = Console() if sys.stdout.isatty() else Console(width=_WIDTH_OF_FILES)
    for entry in tables:
        console.print(entry, markup=False) if isinstance(entry, str) else console.print(entry)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(f"{entry:.3g}" if isinstance(entry, float) else _cell(entry) for entry in value)
    return str(value)


def filter_table(filters: Mapping[str, FilterReport]) -> Table:
    """What became of the pairs of each objective."""
    columns = ("objective", "pairs kept", "dropped: empty answer", "dropped: equal answers", "answers without partner")
    return table("Pairs", columns, ((name, *report.as_json().values()) for name, report in filters.items()))


def site_table(sites: Mapping[str, Sequence[SiteReport]]) -> Table:
    """What the fit found at each site; figures are the method's own."""
    rows = [(objective, report.as_json()) for objective, reports in sites.items() for report in reports]
    names = list(dict.fromkeys(name for _, figures in rows for name in figures))
    return table(
        "Fit",
        ("objective", *names),
        ((objective, *(figures.get(name) for name in names)) for objective, figures in rows),
    )
