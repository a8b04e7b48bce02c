"""`alignez-bake fit`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from alignez_bake.cli import options
from alignez_bake.cli.choices import unescaped
from alignez_bake.cli.shell import number_or_auto, resolved_device, show
from alignez_bake.progress import RichProgress

if TYPE_CHECKING:
    from rich.table import Table

    from alignez_bake.commands.fit import FitResult

# "\b" keeps the lines as they are in the help.
EXAMPLES: Final = (
    "\b\n"
    "Examples:\n"
    "  alignez-bake fit --model base --pairs pairs.jsonl --out edits.safetensors\n"
    "  alignez-bake fit --model base --pairs mine.jsonl --out edits.safetensors --method alignez_v1 --layers 4-20\n"
    "  alignez-bake fit --model base --pairs pairs.jsonl --out edits.safetensors --method alignez_v2 --gated "
    "--positions last --top-layers 5\n"
)


def fit_command(
    *,
    model: options.Model,
    pairs: Annotated[Path, typer.Option("--pairs", metavar="pairs.jsonl", help="Pairs of `pairs`, or your own.")],
    out: Annotated[Path, typer.Option("--out", metavar="edits.safetensors", help="File to write.")],
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
    objective: Annotated[
        str | None,
        typer.Option(
            "--objective", metavar="NAME[=W],...", help="Which of the pairs' objectives to fit; all if left out."
        ),
    ] = None,
    objectives_file: options.ObjectivesFile = None,
    prompt_template: options.PromptTemplate = None,
    device: options.Device = "auto",
    seed: options.Seed = 0,
    batch_size: options.BatchSize = 64,
    trust_remote_code: options.TrustRemoteCode = False,
    json: options.Json = False,
    yes: options.Yes = False,
) -> None:
    """Find edits from pairs and write them to a small file, which `bake` folds into a base."""
    del yes  # nothing is asked here
    from alignez_bake.commands.fit import fit  # noqa: PLC0415 - so that --help is quick

    result = fit(
        model,
        pairs,
        out,
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
        objective=objective,
        objectives_file=objectives_file,
        prompt_template=unescaped(prompt_template),
        device=resolved_device(device),
        seed=seed,
        batch_size=batch_size,
        trust_remote_code=trust_remote_code,
        progress=RichProgress(),
    )
    show(result, as_json=json, tables=lambda: _tables(result))
    result.raise_if_failed()


def _tables(result: FitResult) -> list[Table | str]:
    from alignez_bake.interference.tables import interference_tables  # noqa: PLC0415
    from alignez_bake.report.tables import filter_table, site_table  # noqa: PLC0415
    from alignez_bake.tuning.tables import tuning_tables  # noqa: PLC0415

    chosen = [] if result.tuned is None else tuning_tables(result.tuned.tuning)
    if result.fitted is None:
        return [*chosen, f"Nothing was written to {result.path}."]
    notes = [f"Note: {note}." for note in result.fitted.notes]
    together = interference_tables(result.fitted.plan.provenance)
    tables = [filter_table(result.fitted.filters), *chosen, site_table(result.fitted.sites), *together]
    return [*tables, *notes, f"Written to {result.path}."]
