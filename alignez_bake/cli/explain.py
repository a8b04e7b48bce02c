"""`alignez-bake explain`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from alignez_bake.cli import options
from alignez_bake.cli.shell import show

if TYPE_CHECKING:
    from rich.table import Table

    from alignez_bake.commands.explain import Explanation, SiteExplanation

# "\b" keeps the lines as they are in the help.
EXAMPLES: Final = (
    "\b\n"
    "Examples:\n"
    "  alignez-bake explain --model base\n"
    "  alignez-bake explain --model base --edits edits.safetensors\n"
)


def explain_command(
    *,
    model: options.Model,
    edits: Annotated[
        Path | None, typer.Option("--edits", metavar="F", help="Edits to decide about; the base alone if left out.")
    ] = None,
    artefact: options.As = "checkpoint",
    allow_other_base: options.AllowOtherBase = False,
    json: options.Json = False,
) -> None:
    """What would be folded, inserted or refused, and why. Reads headers alone; nothing is run or written."""
    from alignez_bake.commands.explain import explain  # noqa: PLC0415 - so that --help is quick

    result = explain(model, edits, artefact=artefact, allow_other_base=allow_other_base)
    show(result, as_json=json, tables=lambda: _tables(result))


def _tables(result: Explanation) -> list[Table | str]:
    from alignez_bake.report.tables import decision_table, table  # noqa: PLC0415

    title = f"Sites of this {result.model_type}, {result.layers} layers"
    columns = ("site", "edits can read", "map", "[d_out, d_in]", "constants fold", "norm after it")
    tables: list[Table | str] = [table(title, columns, (_row(site) for site in result.sites))]
    if result.lowering is not None:
        tables.append(decision_table(result.lowering.decisions))
    return tables


def _row(site: SiteExplanation) -> tuple[object, ...]:
    if not site.available:
        return (site.kind, "-", site.module, "-", "-", "-")
    return (
        site.kind,
        ", ".join(site.reads),
        site.module,
        site.shape and list(site.shape),
        site.has_bias,
        site.post_norm,
    )
