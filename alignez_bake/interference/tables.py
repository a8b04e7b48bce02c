"""A record of interference as tables for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alignez_bake.report.tables import table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.table import Table


def interference_tables(provenance: Mapping[str, Any]) -> list[Table]:
    """What stands under `interference` in the provenance of a plan that was just fitted; no tables where nothing does.

    Args:
        provenance: of `EditPlan`.
    """
    record = provenance.get("interference")
    if record is None:
        return []
    effects = record["effects"]
    names = effects["objectives"]
    matrix = table(
        f"What each dial moves ({effects['unit']}, ± standard error)",
        ("dial", *(f"margin of {name}" for name in names)),
        ((name, *(_shown(entry) for entry in row)) for name, row in zip(names, effects["matrix"], strict=True)),
    )
    overlap = table(
        "What the edits have in common (cosines)",
        ("objectives", "edits", "written", "read", "left of the sum at the dials"),
        (
            (
                found["objectives"],
                found["edit_cosine"],
                found["output_cosine"],
                found["input_cosine"],
                found["kept_at_dials"],
            )
            for found in record["overlaps"]
        ),
    )
    return [matrix, overlap]


def _shown(effect: Mapping[str, float | None]) -> str:
    error = effect["standard_error"]
    return f"{effect['value']:+.3f}" + ("" if error is None else f" ± {error:.3f}")
