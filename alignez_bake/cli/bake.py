"""`alignez-bake bake`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from alignez_bake.cli import options
from alignez_bake.cli.choices import check_level, parse_weights
from alignez_bake.cli.shell import resolved_device, show
from alignez_bake.progress import RichProgress

if TYPE_CHECKING:
    from rich.table import Table

# "\b" keeps the lines as they are in the help.
EXAMPLES: Final = (
    "\b\n"
    "Examples:\n"
    "  alignez-bake bake --model base --edits edits.safetensors --out aligned\n"
    "  alignez-bake bake --model base --edits edits.safetensors --out half --objective helpful=0.5 --verify forward\n"
)


def bake_command(
    *,
    model: options.Model,
    edits: Annotated[Path, typer.Option("--edits", metavar="F", help="edits.safetensors, as `fit` writes it.")],
    out: Annotated[Path, typer.Option("--out", metavar="OUT", help="Folder to write; must not exist, or be empty.")],
    objective: Annotated[
        str | None,
        typer.Option("--objective", metavar="NAME=W,...", help="Dials: how much of each objective's edits to bake."),
    ] = None,
    artefact: options.As = "checkpoint",
    dtype: options.Dtype = None,
    verify: options.Verify = "tensors",
    device: options.Device = "auto",
    allow_other_base: options.AllowOtherBase = False,
    trust_remote_code: options.TrustRemoteCode = False,
    seed: options.Seed = 0,
    dry_run: options.DryRun = False,
    json: options.Json = False,
    yes: options.Yes = False,
) -> None:
    """Fold edits into a base's weights, and certify the result. No model is run, unless with --verify forward."""
    del yes  # nothing is asked here
    from alignez_bake.commands.bake import bake  # noqa: PLC0415 - so that --help is quick

    level = check_level(verify, "--verify")
    result = bake(
        model,
        edits,
        out,
        artefact=artefact,
        dtype=dtype,
        weights=parse_weights(objective),
        verify=level,
        allow_other_base=allow_other_base,
        device=resolved_device(device) if level == "forward" else device,
        trust_remote_code=trust_remote_code,
        seed=seed,
        dry_run=dry_run,
        progress=RichProgress(),
    )

    def tables() -> list[Table | str]:
        from alignez_bake.report.tables import certificate_table, decision_table  # noqa: PLC0415

        if dry_run:
            return [decision_table(result.lowering), f"Dry run: nothing was written to {out}."]
        left_out = [f"Left out: {name} ({reason})." for name, reason in result.skipped]
        written = f"Written to {result.path}."
        return [decision_table(result.lowering), certificate_table(result.levels), *left_out, written]

    show(result, as_json=json, tables=tables)
    result.raise_if_failed()
