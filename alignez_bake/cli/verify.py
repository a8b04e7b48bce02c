"""`alignez-bake verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from alignez_bake.cli import options
from alignez_bake.cli.choices import check_level
from alignez_bake.cli.shell import resolved_device, show
from alignez_bake.progress import RichProgress

if TYPE_CHECKING:
    from rich.table import Table

# "\b" keeps the lines as they are in the help.
EXAMPLES: Final = (
    "\b\nExamples:\n  alignez-bake verify aligned\n  alignez-bake verify aligned --model base --level tensors\n"
)


def verify_command(
    *,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A result folder.")],
    model: options.OptionalModel = None,
    base_onnx: Annotated[
        Path | None,
        typer.Option(
            "--base-onnx",
            metavar="DIR",
            help="Of a patched graph: the graph it was made from; if left out, where it lay.",
        ),
    ] = None,
    level: Annotated[
        str | None,
        typer.Option(
            "--level",
            metavar="LEVEL",
            help="tensors: compare the files; forward: also run result and hooked model, the default where it runs.",
        ),
    ] = None,
    device: options.Device = "auto",
    trust_remote_code: options.TrustRemoteCode = False,
    json: options.Json = False,
) -> None:
    """Measure the certificate of a result again: exit status 0 if it holds, 1 if not."""
    from alignez_bake.commands.verify import verify  # noqa: PLC0415 - so that --help is quick

    checked = None if level is None else check_level(level, "--level")
    result = verify(
        out,
        model,
        base_onnx=base_onnx,
        level=checked,
        device=resolved_device(device) if checked != "tensors" else device,
        trust_remote_code=trust_remote_code,
        progress=RichProgress(),
    )

    def tables() -> list[Table | str]:
        from alignez_bake.report.tables import certificate_table  # noqa: PLC0415

        return [certificate_table(result.levels)]

    show(result, as_json=json, tables=tables)
    result.raise_if_failed()
