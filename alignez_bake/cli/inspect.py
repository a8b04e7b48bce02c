"""`alignez-bake inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from alignez_bake.cli import options
from alignez_bake.cli.shell import show

if TYPE_CHECKING:
    from rich.table import Table

    from alignez_bake.commands.inspect import Inspection

# "\b" keeps the lines as they are in the help.
EXAMPLES: Final = (
    "\b\n"
    "Examples:\n"
    "  alignez-bake inspect edits.safetensors\n"
    "  alignez-bake inspect aligned\n"
    "  alignez-bake inspect aligned --html report.html\n"
)


def inspect_command(
    *,
    path: Annotated[
        Path,
        typer.Argument(
            metavar="edits.safetensors|OUT", help="An edit file, a result folder, or USER/REPO of edits on the hub."
        ),
    ],
    html: Annotated[
        Path | None,
        typer.Option(
            "--html",
            metavar="F",
            help="Write the report of a result folder to this file, from its records alone; see `bake --report`.",
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """What an edit file or a result folder holds."""
    from alignez_bake.commands.inspect import inspect  # noqa: PLC0415 - so that --help is quick

    result = inspect(path, html=html)
    show(result, as_json=json, tables=lambda: _tables(result))


def _tables(result: Inspection) -> list[Table | str]:
    from alignez_bake.report.tables import table  # noqa: PLC0415

    plan = result.plan
    about: list[tuple[str, object]] = [
        ("made for", "any base" if plan.base is None else f"{plan.base.model_type} {plan.base.tensors_sha256[:12]}"),
        ("method", plan.provenance.get("method")),
        ("objectives", [f"{name} x {plan.weights.get(name, 1.0):g}" for name in plan.objectives]),
    ]
    if result.record is not None:
        about.append(("written by", result.record.get("tool")))
    if result.certificate is not None:
        about.append(("certificate, as written", result.certificate.get("verdict")))
    columns = ("site", "objective", "reads", "gate", "positions", "rank", "strength", "norm", "constant")
    rows = (
        (e.site, e.objective, e.reads, e.gate, e.positions, e.rank, e.strength, e.norm, e.has_constant)
        for e in result.edits
    )
    written = [] if result.html is None else [f"Written to {result.html}."]
    return [table(str(result.path), ("", ""), about), table("Edits, in order of application", columns, rows), *written]
