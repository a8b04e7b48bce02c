"""`alignez-bake --model BASE --out OUT`: the whole way."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from alignez_bake import __version__
from alignez_bake.cli import options
from alignez_bake.cli.choices import unescaped, weight_bits
from alignez_bake.cli.pushing import check_push, show_and_push
from alignez_bake.cli.shell import number_or_auto, resolved_device
from alignez_bake.errors import BadInputError
from alignez_bake.progress import RichProgress

if TYPE_CHECKING:
    from rich.table import Table

    from alignez_bake.commands.align import AlignResult

# "\b" keeps the lines as they are in the help.
EXAMPLES: Final = (
    "\b\n"
    "Examples:\n"
    "  alignez-bake --model base --out aligned\n"
    "  alignez-bake --model base --out aligned --queries my_queries.txt --objective helpful,harmless=0.5\n"
    "  alignez-bake verify aligned\n"
)


def align_command(
    context: typer.Context,
    *,
    model: Annotated[
        Path | None,
        typer.Option("--model", metavar="BASE", help="The base: a folder, or USER/REPO[@REVISION] of the hub."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="OUT", help="Folder to write; must not exist, or be empty.")
    ] = None,
    objective: options.Objective = "helpful",
    objectives_file: options.ObjectivesFile = None,
    queries: options.Queries = None,
    prompt_template: options.PromptTemplate = None,
    method: options.Method = "auto",
    strength: options.Strength = None,
    layers: options.Layers = None,
    rank: options.Rank = None,
    penalty: options.Penalty = None,
    positions: options.Positions = "all",
    gated: options.Gated = False,
    top_layers: options.TopLayers = None,
    joint: options.Joint = False,
    untie: options.Untie = False,
    kl_budget: options.KlBudget = None,
    neutral: options.Neutral = None,
    artefact: options.As = "checkpoint",
    dtype: options.Dtype = None,
    opset: options.Opset = None,
    external_data: options.ExternalData = False,
    optimize: options.Optimize = False,
    int4: options.Int4 = False,
    int8: options.Int8 = False,
    require_fold: options.RequireFold = False,
    linearise: options.Linearise = False,
    report: options.Report = None,
    push: options.Push = None,
    device: options.Device = "auto",
    seed: options.Seed = 0,
    batch_size: options.BatchSize = 64,
    save_pairs: options.SavePairs = False,
    trust_remote_code: options.TrustRemoteCode = False,
    allow_other_base: options.AllowOtherBase = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
    yes: options.Yes = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Make a base model align itself, and write the result as an ordinary checkpoint.

    The base writes good and bad answers under two personas; edits are fitted to its own activations and folded into
    its weights; the result is certified against the base with the same edits applied by hooks.
    """
    if version:
        typer.echo(__version__)
        raise typer.Exit
    if context.invoked_subcommand is not None:
        _refuse_options_before(context)
        return
    if model is None or out is None:
        raise BadInputError(f"{'--model BASE' if model is None else '--out OUT'} is missing (see alignez-bake --help)")
    del yes, allow_other_base  # nothing is asked here, and the edits are always made for this base
    check_push(push)
    from alignez_bake.commands.align import align  # noqa: PLC0415 - so that --help is quick

    result = align(
        model,
        out,
        objective=objective,
        objectives_file=objectives_file,
        queries=queries,
        prompt_template=unescaped(prompt_template),
        method=method,
        strength=number_or_auto(strength, "--strength"),
        layers=layers,
        rank=rank,
        penalty=penalty,
        positions=positions,
        gated=gated,
        top_layers=top_layers,
        joint=joint,
        untie=untie,
        kl_budget=kl_budget,
        neutral=neutral,
        artefact=artefact,
        dtype=dtype,
        opset=opset,
        external_data=external_data,
        optimise=optimize,
        weight_bits=weight_bits(int4=int4, int8=int8),
        require_fold=require_fold,
        linearise=linearise,
        device=resolved_device(device),
        seed=seed,
        batch_size=batch_size,
        save_pairs=save_pairs,
        report=report,
        trust_remote_code=trust_remote_code,
        dry_run=dry_run,
        progress=RichProgress(),
    )
    show_and_push(result, push, as_json=json, tables=lambda: _tables(result), dry_run=dry_run)


def _refuse_options_before(context: typer.Context) -> None:
    """Options before a command's name belong to the whole way: refuse them instead of dropping them."""
    given = [
        name
        for name in context.params
        if (source := context.get_parameter_source(name)) is not None and not source.name.startswith("DEFAULT")
    ]
    if given:
        option = f"--{given[0].replace('_', '-')}"
        raise BadInputError(f"{option} stands before the command {context.invoked_subcommand!r}: put it after")


def _tables(result: AlignResult) -> list[Table | str]:
    from alignez_bake.feasibility.tables import feasibility_note  # noqa: PLC0415
    from alignez_bake.interference.tables import interference_tables  # noqa: PLC0415
    from alignez_bake.report.tables import (  # noqa: PLC0415
        certificate_table,
        decision_table,
        filter_table,
        refit_table,
        site_table,
        table,
    )
    from alignez_bake.tuning.tables import tuning_tables  # noqa: PLC0415

    plan = result.plan
    chosen = [] if result.tuned is None else tuning_tables(result.tuned.tuning)
    if result.tuned is not None and result.fitted is None:
        return [*feasibility_note(result.feasibility or {}), *chosen, f"Nothing was written to {plan.out}."]
    if result.fitted is None or result.baked is None:
        given = {name: plan.method[name] for name in ("strength", "rank") if plan.method.get(name) is not None}
        settings = [f"{name} {value:g}" for name, value in given.items()]
        rows: list[tuple[str, object]] = [
            ("objectives", [f"{name} x {weight:g}" for name, weight in plan.objectives.items()]),
            ("queries", plan.queries),
            ("method", [plan.method["name"], *settings]),
            *([("chosen among", plan.method["candidates"])] if "candidates" in plan.method else []),
            ("sites", plan.sites),
        ]
        return [table("What would be done", ("", ""), rows), f"Dry run: nothing was written to {plan.out}."]
    notes: list[Table | str] = list(feasibility_note(result.feasibility or {}))
    notes += [f"Note: {note}" for note in result.fitted.notes]
    notes += [f"Note: {result.note}."] if result.note else []
    if plan.duplicates:
        notes.append(f"{plan.duplicates} repeated queries were dropped.")
    notes += [f"Left out: {name} ({reason})." for name, reason in result.baked.skipped]
    notes += [f"Note: {note}." for note in result.baked.notes if note not in result.fitted.notes]
    notes += [] if result.baked.report is None else [f"Report: {result.baked.report}."]
    return [
        filter_table(result.fitted.filters),
        *chosen,
        site_table(result.fitted.sites),
        *interference_tables(result.fitted.plan.provenance),
        *([] if result.baked.refitted is None else [refit_table(result.baked.refitted)]),
        decision_table(result.baked.lowering.decisions),
        certificate_table(result.baked.levels),
        *notes,
        f"Written to {result.baked.path}.",
    ]
