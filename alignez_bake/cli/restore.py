"""`alignez-bake restore`."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from alignez_bake.cli import options
from alignez_bake.cli.shell import show
from alignez_bake.errors import BadInputError
from alignez_bake.progress import RichProgress

if TYPE_CHECKING:
    from rich.table import Table

    from alignez_bake.commands.restore import RestoreResult

# "\b" keeps the lines as they are in the help.
EXAMPLES: Final = "\b\nExamples:\n  alignez-bake restore aligned --base base\n  alignez-bake restore aligned --yes\n"


def restore_command(
    *,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A baked checkpoint; it becomes its base again.")],
    base: Annotated[
        Path | None,
        typer.Option(
            "--base",
            metavar="BASE",
            help="The base: a folder, or USER/REPO[@REVISION] on the hub; if left out, what `bake --reversible` kept "
            "of it, else where it lay at baking.",
        ),
    ] = None,
    json: options.Json = False,
    yes: options.Yes = False,
) -> None:
    """Undo a bake, byte for byte and in place: OUT becomes the base's model folder, whole or not at all."""
    from alignez_bake.commands.restore import restore  # noqa: PLC0415 - so that --help is quick

    if not yes and sys.stdin.isatty() and not typer.confirm(f"Make {out} its base again? Its edits go", err=True):
        raise BadInputError(f"{out} stays as it is: the answer was no")
    result = restore(out, base, progress=RichProgress())
    show(result, as_json=json, tables=lambda: _tables(result))


def _tables(result: RestoreResult) -> list[Table | str]:
    from alignez_bake.report.tables import table  # noqa: PLC0415

    meanings = {
        "kept": "the result's own, which were the base's",
        "rebuilt": "the base's tensors put back",
        "taken": "from the base as a whole",
    }
    counts = Counter(way for _, way in result.files)
    rows = [(meaning, counts[way]) for way, meaning in meanings.items() if counts[way]]
    left_out = [f"Not restored, the bake had left it out: {name} ({reason})." for name, reason in result.left_out]
    done = f"{result.path} is its base again, with what it lacked from {result.source}."
    return [table("Files restored", ("how", "files"), rows), *left_out, done]
