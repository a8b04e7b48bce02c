"""The table of docs/architectures.md, made from the data files: legal site x reads x architecture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from alignez_bake.architectures.architecture import architecture_for, known_model_types
from alignez_bake.site import LEGAL_READS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from alignez_bake.architectures.architecture import LinearSite

_COLUMNS: Final = (
    "model_type",
    "site",
    "folds",
    "never folds",
    "module below the layer",
    "weight",
    "bias",
    "norm after",
)
_BIASES: Final[Mapping[str, str]] = {"never": "no", "always": "yes"}


def architecture_table() -> str:
    """Every architecture with its sites, as Markdown."""
    rows: list[Sequence[str]] = [_COLUMNS, tuple("---" for _ in _COLUMNS)]
    for model_type in known_model_types():
        architecture = architecture_for({"model_type": model_type})
        for where, sites in (("", architecture.sites), (", dense", architecture.dense_sites)):
            for kind, linear in sites.items():
                reads = [name for name in LEGAL_READS[kind] if name in linear.legal_reads]
                folding = ", ".join(name for name in reads if name != "block")
                other = ", ".join(name for name in reads if name == "block") or "-"
                rows.append((model_type, f"`{kind}`{where}", folding, other, *_cells(linear)))
        for kind, reason in architecture.absent_sites.items():
            rows.append((model_type, f"`{kind}`", "-", "-", f"none: {reason}", "-", "-", "-"))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _cells(linear: LinearSite) -> tuple[str, str, str, str]:
    axes = "d_out, d_in" if linear.layout == "out_in" else "d_in, d_out"
    stacked = linear.experts is not None and "{expert}" not in linear.experts
    layout = f"[experts, {axes}]" if stacked else f"[{axes}]"
    paths = [linear.experts or linear.module, *([] if linear.shared_experts is None else [linear.shared_experts])]
    rows = {"all": "", "first_half": ", first half of the rows", "second_half": ", second half of the rows"}[
        linear.rows
    ]
    return (
        " and ".join(f"`{path}`" for path in paths),
        layout + rows,
        _BIASES.get(linear.bias, f"if `{linear.bias}`"),
        "-" if linear.post_norm is None else f"`{linear.post_norm}`",
    )
