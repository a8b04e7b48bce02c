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

    from alignez_bake.commands.verify import VerifyLevel

# "\b" keeps the lines as they are in the help.
EXAMPLES: Final = (
    "\b\nExamples:\n  alignez-bake verify aligned\n  alignez-bake verify aligned --model base --level tensors\n"
    "  alignez-bake verify aligned --level manifest\n"
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
            help="manifest: the files against OUT's own hashes, which needs no base; tensors: also against base and "
            "formula; forward: also run result and hooked model, the default where it runs. A base that is gone leaves "
            "the manifest.",
        ),
    ] = None,
    device: options.Device = "auto",
    allow_pickle: options.AllowPickle = False,
    trust_remote_code: options.TrustRemoteCode = False,
    json: options.Json = False,
) -> None:
    """Check a result against its manifest, its base and its edits: exit status 0 if all holds, 1 if not."""
    from alignez_bake.commands.verify import verify, why_no_base  # noqa: PLC0415 - so that --help is quick

    checked = _checked(level)
    runs = checked == "forward" or (checked is None and why_no_base(out, model, base_onnx) is None)
    result = verify(
        out,
        model,
        base_onnx=base_onnx,
        level=checked,
        allow_pickle=allow_pickle,
        device=resolved_device(device) if runs else device,
        trust_remote_code=trust_remote_code,
        progress=RichProgress(),
    )

    def tables() -> list[Table | str]:
        from alignez_bake.report.tables import certificate_table, table  # noqa: PLC0415

        of_manifest = [] if result.manifest is None else result.manifest.main_figures()
        return [
            *([table("Manifest", ("figure", "value"), of_manifest)] if of_manifest else []),
            *([certificate_table(result.levels)] if result.levels else []),
        ]

    show(result, as_json=json, tables=tables)
    result.raise_if_failed()


def _checked(level: str | None) -> VerifyLevel | None:
    """The level that was asked for.

    Raises:
        BadInputError: none of the three.
    """
    if level is None:
        return None
    return "manifest" if level == "manifest" else check_level(level, "--level")
