"""`alignez-bake explain`."""

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

    from alignez_bake.commands.explain import Explanation, SiteExplanation

# "\b" keeps the lines as they are in the help.
EXAMPLES: Final = (
    "\b\n"
    "Examples:\n"
    "  alignez-bake explain --model base\n"
    "  alignez-bake explain --model base --edits edits.safetensors\n"
    "  alignez-bake explain --model base --feasibility --queries my_queries.txt\n"
)


def explain_command(
    *,
    model: options.Model,
    edits: Annotated[
        Path | None, typer.Option("--edits", metavar="F", help="Edits to decide about; the base alone if left out.")
    ] = None,
    artefact: options.As = "checkpoint",
    allow_other_base: options.AllowOtherBase = False,
    feasibility: Annotated[
        bool,
        typer.Option(
            "--feasibility",
            help="Run the base as well: does it follow its personas, are its pairs any good, do its layers tell them "
            "apart, and so is alignment likely to help? What follows is for this alone.",
        ),
    ] = False,
    pairs: Annotated[
        Path | None,
        typer.Option("--pairs", metavar="pairs.jsonl", help="Pairs; the base writes a hundred if left out, for once."),
    ] = None,
    queries: options.Queries = None,
    objective: Annotated[
        str | None,
        typer.Option(
            "--objective",
            metavar="NAME[=W],...",
            help="As for the whole way; with --pairs all that they have if left out.",
        ),
    ] = None,
    objectives_file: options.ObjectivesFile = None,
    prompt_template: options.PromptTemplate = None,
    device: options.Device = "auto",
    seed: options.Seed = 0,
    batch_size: options.BatchSize = 64,
    trust_remote_code: options.TrustRemoteCode = False,
    json: options.Json = False,
) -> None:
    """What would be folded, inserted or refused, and why. Reads headers alone; writes nothing.

    With --feasibility it runs the base and predicts whether alignment will help.
    """
    from alignez_bake.commands.explain import explain  # noqa: PLC0415 - so that --help is quick

    result = explain(
        model,
        edits,
        artefact=artefact,
        allow_other_base=allow_other_base,
        feasibility=feasibility,
        pairs=pairs,
        queries=queries,
        objective=objective,
        objectives_file=objectives_file,
        prompt_template=unescaped(prompt_template),
        device=resolved_device(device) if feasibility else "cpu",
        seed=seed,
        batch_size=batch_size,
        trust_remote_code=trust_remote_code,
        progress=RichProgress(),
    )
    show(result, as_json=json, tables=lambda: _tables(result))


def _tables(result: Explanation) -> list[Table | str]:
    from alignez_bake.report.tables import decision_table, table  # noqa: PLC0415

    title = f"Sites of this {result.model_type}, {result.layers} layers"
    columns = ("site", "edits can read", "map", "[d_out, d_in]", "constants fold", "norm after it")
    tables: list[Table | str] = [table(title, columns, (_row(site) for site in result.sites))]
    if result.lowering is not None:
        tables.append(decision_table(result.lowering.decisions))
    if result.feasibility is not None:
        from alignez_bake.feasibility.tables import feasibility_tables  # noqa: PLC0415

        tables += feasibility_tables(result.feasibility.objectives)
        tables += [f"Note: {result.feasibility.note}."] if result.feasibility.note else []
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
