"""`alignez-bake bake`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from alignez_bake.cli import options
from alignez_bake.cli.choices import check_level, parse_weights, weight_bits
from alignez_bake.cli.graph_baking import bake_into_graph, check_patch_options
from alignez_bake.cli.pushing import check_push, show_and_push
from alignez_bake.cli.shell import resolved_device
from alignez_bake.errors import BadInputError
from alignez_bake.progress import RichProgress

if TYPE_CHECKING:
    from rich.table import Table

# "\b" keeps the lines as they are in the help.
EXAMPLES: Final = (
    "\b\n"
    "Examples:\n"
    "  alignez-bake bake --model base --edits edits.safetensors --out aligned\n"
    "  alignez-bake bake --model base --edits edits.safetensors --out half --objective helpful=0.5 --verify forward\n"
    "  alignez-bake bake --model base --edits edits.safetensors --out lora --as adapter\n"
    "  alignez-bake bake --model base --edits gated.safetensors --out aligned --trust-remote-code\n"
    "  alignez-bake bake --model base --edits edits.safetensors --out graph --as onnx --optimize\n"
    "  alignez-bake bake --model base --edits aligned --point contrastive_decoding-2.5 --out stronger\n"
    "  alignez-bake bake --base-onnx exported --edits edits.safetensors --out graph\n"
)


def bake_command(
    *,
    edits: Annotated[
        Path, typer.Option("--edits", metavar="F", help="edits.safetensors, or a folder or USER/REPO that has it.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="OUT", help="Folder to write; must not exist, or be empty.")],
    model: Annotated[
        Path | None,
        typer.Option(
            "--model",
            metavar="BASE",
            help="The base model: a folder, or USER/REPO[@REVISION] on the hub. Beside --base-onnx it is what the "
            "graph was made of, and can be left out.",
        ),
    ] = None,
    base_onnx: Annotated[
        Path | None,
        typer.Option("--base-onnx", metavar="DIR", help="Bake into this ONNX graph, ours or another tool's."),
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option("--objective", metavar="NAME=W,...", help="Dials: how much of each objective's edits to bake."),
    ] = None,
    point: Annotated[
        str | None,
        typer.Option(
            "--point", metavar="NAME", help="Another candidate of the search that chose these edits, such as ridge-2."
        ),
    ] = None,
    artefact: options.As = "checkpoint",
    dtype: options.Dtype = None,
    opset: options.Opset = None,
    external_data: options.ExternalData = False,
    optimize: options.Optimize = False,
    int4: options.Int4 = False,
    int8: options.Int8 = False,
    link: options.Link = False,
    rounding: options.Rounding = "auto",
    hash_algorithm: options.Hash = "blake3-leaves",
    verify: options.Verify = None,
    require_fold: options.RequireFold = False,
    linearise: options.Linearise = False,
    refit_block: options.RefitBlock = False,
    reversible: options.Reversible = False,
    report: options.Report = None,
    push: options.Push = None,
    device: options.Device = "auto",
    batch_size: options.BatchSize = 64,
    allow_other_base: options.AllowOtherBase = False,
    allow_pickle: options.AllowPickle = False,
    trust_remote_code: options.TrustRemoteCode = False,
    seed: options.Seed = 0,
    dry_run: options.DryRun = False,
    json: options.Json = False,
    yes: options.Yes = False,
) -> None:
    """Bake edits into a base, and certify the result. No model is run, unless to verify or refit."""
    del yes  # nothing is asked here
    if base_onnx is not None:
        given = {
            "--as": artefact != "checkpoint",
            "--dtype": dtype is not None,
            "--opset": opset is not None,
            "--external-data": external_data,
            "--optimize": optimize,
            "--int4": int4,
            "--int8": int8,
            "--link": link,
            "--rounding": rounding != "auto",
            "--linearise": linearise,
            "--refit-block": refit_block,
            "--reversible": reversible,
            "--allow-pickle": allow_pickle,
        }
        check_patch_options([option for option, is_given in given.items() if is_given])
        bake_into_graph(
            base_onnx,
            edits,
            out,
            model=model,
            objective=objective,
            point=point,
            verify=verify,
            require_fold=require_fold,
            push=push,
            device=device,
            allow_other_base=allow_other_base,
            trust_remote_code=trust_remote_code,
            seed=seed,
            report=report,
            dry_run=dry_run,
            json=json,
        )
        return
    if model is None:
        raise BadInputError("--model BASE is missing, or --base-onnx DIR (see alignez-bake bake --help)")
    from alignez_bake.commands.bake import bake, checked_level  # noqa: PLC0415 - so that --help is quick
    from alignez_bake.exporters.registry import exporter_named  # noqa: PLC0415 - likewise

    level = checked_level(exporter_named(artefact), None if verify is None else check_level(verify, "--verify"))
    check_push(push)
    runs = level == "forward" or linearise or refit_block
    result = bake(
        model,
        edits,
        out,
        artefact=artefact,
        dtype=dtype,
        opset=opset,
        external_data=external_data,
        optimise=optimize,
        weight_bits=weight_bits(int4=int4, int8=int8),
        link=link,
        rounding=rounding,
        hash_algorithm=hash_algorithm,
        weights=parse_weights(objective),
        point=point,
        verify=level,
        require_fold=require_fold,
        linearise=linearise,
        refit_block=refit_block,
        reversible=reversible,
        batch_size=batch_size,
        allow_other_base=allow_other_base,
        allow_pickle=allow_pickle,
        device=resolved_device(device) if runs else device,
        trust_remote_code=trust_remote_code,
        seed=seed,
        report=report,
        dry_run=dry_run,
        progress=RichProgress(),
    )

    def tables() -> list[Table | str]:
        from alignez_bake.report.tables import certificate_table, decision_table, refit_table  # noqa: PLC0415

        kept = [] if result.refitted is None else [refit_table(result.refitted)]
        if dry_run:
            return [*kept, decision_table(result.lowering.decisions), f"Dry run: nothing was written to {out}."]
        left_out = [f"Left out: {name} ({reason})." for name, reason in result.skipped]
        left_out += [f"Note: {note}." for note in result.notes]
        left_out += [] if result.report is None else [f"Report: {result.report}."]
        written = f"Written to {result.path}."
        return [*kept, decision_table(result.lowering.decisions), certificate_table(result.levels), *left_out, written]

    show_and_push(result, push, as_json=json, tables=tables, dry_run=dry_run)
