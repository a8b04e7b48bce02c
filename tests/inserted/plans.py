"""What inserted modules are tried with: every kind of site, reading, gate and position, and several at once."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from alignez_bake.architectures.architecture import architecture_for
from alignez_bake.edit_plan import EditPlan
from tests.inserted.saving import edit_at

if TYPE_CHECKING:
    from alignez_bake.model_folder import ModelFolder

CASES = {
    "attn_write, output": ("attn_write", {"gate": "relu"}),
    "attn_write, input, last": ("attn_write", {"reads": "input", "gate": "tanh", "positions": "last"}),
    "attn_write, block": ("attn_write", {"reads": "block", "gate": "tanh"}),
    "attn_write, block, last": ("attn_write", {"reads": "block", "positions": "last"}),
    "mlp_write, output": ("mlp_write", {"gate": "tanh", "strength": -1.5}),
    "mlp_write, output, last": ("mlp_write", {"gate": "relu", "positions": "last"}),
    "mlp_write, input": ("mlp_write", {"reads": "input"}),
    "mlp_write, block": ("mlp_write", {"reads": "block", "gate": "relu", "strength": 0.5}),
    "mlp_gate, output, last": ("mlp_gate", {"gate": "tanh", "positions": "last"}),
    "mlp_gate, input": ("mlp_gate", {"reads": "input", "gate": "relu"}),
    "residual": ("residual", {"gate": "relu"}),
    "residual, last": ("residual", {"positions": "last"}),
    "embed": ("embed", {"gate": "tanh"}),
}
"""Kind of site, and what else `edit_at` is told."""


def can_carry(model_type: str, kind: str, reads: str) -> bool:
    """Whether the architecture has the site, and an inserted module there can read that."""
    architecture = architecture_for({"model_type": model_type})
    if kind in architecture.absent_sites:
        return False
    if kind in architecture.sites and reads not in architecture.legal_reads()[kind]:
        return False
    return not (reads == "block" and model_type == "opt" and kind == "mlp_write")


def mixed_plan(base: ModelFolder, *, scale: float = 0.3) -> EditPlan:
    """Chained and parallel edits with dials, at maps, blocks, layers and the embedding at once."""
    first = edit_at(base, "mlp_write", 0, gate="tanh", scale=scale, objective="a")
    second = edit_at(base, "mlp_write", 0, gate="tanh", scale=scale, seed=1, positions="last", objective="a")
    parallel = edit_at(base, "mlp_write", 0, scale=scale, seed=2, objective="b", strength=0.5)
    edits = [
        edit_at(base, "embed", gate="tanh", scale=scale),
        edit_at(base, "attn_write", 0, reads="block", gate="tanh", scale=scale),
        first,
        second,
        parallel,
        edit_at(base, "residual", 0, gate="relu", scale=scale, objective="b"),
        edit_at(base, "attn_write", 1, reads="input", gate="tanh", positions="last", scale=scale),
        edit_at(base, "mlp_write", 1, gate="tanh", scale=scale),
        replace(edit_at(base, "residual", 1, scale=scale), left=None, right=None, offset=None),
    ]
    if can_carry(base.architecture.model_type, "mlp_gate", "input"):
        edits.append(edit_at(base, "mlp_gate", 1, reads="input", gate="tanh", scale=scale))
    return EditPlan(tuple(edits), weights={"a": 0.7, "b": -0.4})
