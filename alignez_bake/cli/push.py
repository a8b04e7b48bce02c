"""`alignez-bake push`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from alignez_bake.cli import options
from alignez_bake.cli.pushing import noted
from alignez_bake.cli.shell import show

if TYPE_CHECKING:
    from rich.table import Table

    from alignez_bake.commands.push import PushResult

# "\b" keeps the lines as they are in the help.
EXAMPLES: Final = (
    "\b\n"
    "Examples:\n"
    "  alignez-bake push aligned user/aligned --dry-run\n"
    "  alignez-bake push aligned user/aligned --private --revision v1\n"
)


def push_command(
    *,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A result folder.")],
    repo: Annotated[str, typer.Argument(metavar="USER/REPO", help="Model repository on the hub; made if not there.")],
    private: Annotated[bool, typer.Option("--private", help="Make the repository private, if it is new.")] = False,
    revision: Annotated[
        str | None,
        typer.Option("--revision", metavar="R", help="Branch to push to; made if not there. main if left out."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List files and sizes; nothing leaves this machine.")
    ] = False,
    json: options.Json = False,
    yes: options.Yes = False,
) -> None:
    """Upload a result to the Hugging Face Hub, with the token that `hf auth login` or HF_TOKEN gave.

    The recorded certificate is trusted: `verify` measures it again.
    """
    del yes  # nothing is asked here
    from alignez_bake.commands.push import push  # noqa: PLC0415 - so that --help is quick

    result = push(out, repo, private=private, revision=revision, dry_run=dry_run)
    show(result, as_json=json, tables=lambda: _tables(result))


def _tables(result: PushResult) -> list[Table | str]:
    from alignez_bake.report.tables import table  # noqa: PLC0415

    upload = result.upload
    rows = [*upload.files, ("total", upload.total_bytes)]
    where = upload.repo if upload.revision is None else f"{upload.repo}@{upload.revision}"
    done = "Dry run: nothing was sent." if result.dry_run else f"Pushed: {upload.url}"
    return [table(f"Files for {where}", ("file", "bytes"), rows), *noted(result), done]
