"""`alignez-bake pairs`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from alignez_bake.cli import options
from alignez_bake.cli.choices import unescaped
from alignez_bake.cli.shell import resolved_device, show
from alignez_bake.progress import RichProgress

if TYPE_CHECKING:
    from rich.table import Table

    from alignez_bake.commands.pairs import PairsResult

# "\b" keeps the lines as they are in the help.
EXAMPLES: Final = (
    "\b\n"
    "Examples:\n"
    "  alignez-bake pairs --model base --out pairs.jsonl\n"
    "  alignez-bake pairs --model base --out pairs.jsonl --queries my_queries.txt --objective harmless\n"
)


def pairs_command(
    *,
    model: options.Model,
    out: Annotated[Path, typer.Option("--out", metavar="pairs.jsonl", help="File to write, or to go on with.")],
    objective: options.Objective = "helpful",
    objectives_file: options.ObjectivesFile = None,
    queries: options.Queries = None,
    prompt_template: options.PromptTemplate = None,
    device: options.Device = "auto",
    seed: options.Seed = 0,
    batch_size: options.BatchSize = 64,
    trust_remote_code: options.TrustRemoteCode = False,
    json: options.Json = False,
    yes: options.Yes = False,
) -> None:
    """Step 1 alone: the base writes good and bad answers. The same command goes on after an interruption."""
    del yes  # nothing is asked here
    from alignez_bake.commands.pairs import pairs  # noqa: PLC0415 - so that --help is quick

    result = pairs(
        model,
        out,
        objective=objective,
        objectives_file=objectives_file,
        queries=queries,
        prompt_template=unescaped(prompt_template),
        device=resolved_device(device),
        seed=seed,
        batch_size=batch_size,
        trust_remote_code=trust_remote_code,
        progress=RichProgress(),
    )
    show(result, as_json=json, tables=lambda: _tables(result))


def _tables(result: PairsResult) -> list[Table | str]:
    from alignez_bake.report.tables import filter_table  # noqa: PLC0415

    notes: list[Table | str] = [f"Note: {result.note}."] if result.note else []
    if result.duplicates:
        notes.append(f"{result.duplicates} repeated queries were dropped.")
    return [filter_table(result.filters), *notes, f"Written to {result.path}."]
