"""`alignez-bake bake --base-onnx`: edits into a graph that is there already."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignez_bake.cli.choices import check_level, parse_weights
from alignez_bake.cli.pushing import check_push, show_and_push
from alignez_bake.cli.shell import resolved_device
from alignez_bake.errors import BadInputError
from alignez_bake.progress import RichProgress

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.table import Table


def check_patch_options(given: Sequence[str]) -> None:
    """Refuse options of `bake` that a graph which is there already has no use for.

    Args:
        given: the options of that kind that were given.

    Raises:
        BadInputError: there is one.
    """
    if given:
        raise BadInputError(
            f"{given[0]} means nothing with --base-onnx, which leaves the graph as it is but for the edits: leave it "
            "out, or bake from the model with --model BASE --as onnx"
        )


def bake_into_graph(
    base_onnx: Path,
    edits: Path,
    out: Path,
    *,
    model: Path | None,
    objective: str | None,
    point: str | None,
    verify: str | None,
    require_fold: bool,
    push: str | None,
    device: str,
    allow_other_base: bool,
    trust_remote_code: bool,
    seed: int,
    report: bool | None,
    dry_run: bool,
    json: bool,
) -> None:
    """Run the command and show its result; arguments as the options of `bake`."""
    from alignez_bake.commands.bake_onnx import bake_onnx  # noqa: PLC0415 - so that --help is quick

    level = check_level("forward" if verify is None else verify, "--verify")
    check_push(push)
    result = bake_onnx(
        base_onnx,
        edits,
        out,
        model=model,
        weights=parse_weights(objective),
        point=point,
        verify=level,
        allow_other_base=allow_other_base,
        require_fold=require_fold,
        # Importing torch, which knows whether there is a GPU, takes seconds.
        device=resolved_device(device) if level == "forward" else device,
        trust_remote_code=trust_remote_code,
        seed=seed,
        report=report,
        dry_run=dry_run,
        progress=RichProgress(),
    )

    def tables() -> list[Table | str]:
        from alignez_bake.report.tables import certificate_table, decision_table  # noqa: PLC0415

        if dry_run:
            return [decision_table(result.decisions), f"Dry run: nothing was written to {out}."]
        files = [f"{name}: {way}." for name, way in result.data_files]
        left_out = [f"Left out: {name} ({reason})." for name, reason in result.skipped]
        left_out += [f"Note: {note}." for note in result.notes]
        left_out += [] if result.report is None else [f"Report: {result.report}."]
        written = f"Written to {result.path}: {result.written / 1e6:.1f} MB of new bytes."
        return [decision_table(result.decisions), certificate_table(result.levels), *files, *left_out, written]

    show_and_push(result, push, as_json=json, tables=tables, dry_run=dry_run)
