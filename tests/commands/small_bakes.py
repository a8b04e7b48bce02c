"""Small bakes of every kind: bases, edits and plans, and a bake that must be certified on both levels."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from alignez_bake.commands.bake import bake
from alignez_bake.lowering.slot import find_slot
from alignez_bake.model_folder import open_model_folder
from alignez_bake.site import Site
from tests.random_edits import random_edit
from tests.tiny_models import save_tiny

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from alignez_bake.commands.bake import BakeResult
    from alignez_bake.edit import Edit
    from alignez_bake.edit_plan import EditPlan
    from alignez_bake.lowering.decide import Lowering

# Short contexts: the certificate's prompts and greedy answers fill them, and every way is certified.
POSITIONS = 32
# End to end in fp32, and what an edit must move the model by (section "Tolerances" of docs/decisions/certificate.md).
TOLERANCE = 1e-5
MARGIN = 100
PARTS = ("residual", "logits")


def small_base(
    model_type: str,
    path: Path,
    *,
    bias: bool | None = None,
    dtype: torch.dtype = torch.float32,
    overrides: Mapping[str, Any] | None = None,
    max_shard_size: str = "5GB",
) -> Path:
    """A tiny base with a short context; arguments as `save_tiny`."""
    name = "n_positions" if model_type == "gpt2" else "max_position_embeddings"
    settings = {name: POSITIONS, **(overrides or {})}
    return save_tiny(model_type, path, bias=bias, dtype=dtype, overrides=settings, max_shard_size=max_shard_size)


def edits_at(
    base: Path,
    kind: str,
    *,
    layers: Sequence[int] = (0, 1),
    reads: str = "output",
    constant: bool = False,
    rank: int = 2,
    seed: int = 0,
    scale: float = 0.3,
    **fields: Any,
) -> list[Edit]:
    """Random edits at some layers' sites; `fields` are those of `Edit`, such as `gate`."""
    folder = open_model_folder(base)
    found = []
    for layer in layers:
        slot = find_slot(folder, Site(kind, layer))
        edit = random_edit(
            slot.site,
            slot.d_out,
            slot.d_in if reads == "input" else slot.d_out,  # a block reads what is as wide as its output
            reads=reads,
            constant=constant,
            rank=rank,
            seed=100 * seed + layer,
            scale=scale,
        )
        found.append(replace(edit, **fields))
    return found


def shifts_at(base: Path, kind: str, *, layers: Sequence[int] = (0, 1), seed: int = 0, **fields: Any) -> list[Edit]:
    """Pure shifts."""
    edits = edits_at(base, kind, layers=layers, constant=True, seed=seed, **fields)
    return [replace(edit, left=None, right=None, offset=None) for edit in edits]


def certified(base: Path, plan: EditPlan, out: Path, **settings: Any) -> BakeResult:
    """Bake with every way open, and require both levels, an edit that moves the model, and equal greedy tokens."""
    result = bake(base, plan, out, verify="forward", **{"trust_remote_code": True, **settings})
    assert result.reasons == ()
    assert result.verdict == "passed"
    tensors, forward = result.levels
    assert (tensors.level, forward.level) == ("tensors", "forward")
    figures = forward.to_json()
    assert [entry["batch_size"] for entry in figures["comparisons"]] == [1, 8]
    for entry in figures["comparisons"]:
        assert entry["residual_moved"] >= MARGIN * TOLERANCE
        assert entry["logits_moved"] >= MARGIN * TOLERANCE
    if figures["dtype"] in ("float32", "float64"):
        assert all(entry[f"{what}_error"] <= TOLERANCE for entry in figures["comparisons"] for what in PARTS)
        assert set(figures["greedy"]["equal_share"].values()) == {1.0}
    return result


def routes(result: BakeResult) -> dict[str, str]:
    """The way of each site."""
    return routes_of(result.lowering)


def routes_of(lowering: Lowering) -> dict[str, str]:
    """The way of each site; a site whose edits part company would show here."""
    found: dict[str, set[str]] = {}
    for decision in lowering.decisions:
        found.setdefault(str(decision.edit.site), set()).add(decision.route)
    return {site: "+".join(sorted(ways)) for site, ways in found.items()}


def index_of(folder: Path) -> dict[str, Any]:
    """model.safetensors.index.json."""
    found: dict[str, Any] = json.loads((folder / "model.safetensors.index.json").read_text())
    return found


def config_of(folder: Path) -> dict[str, Any]:
    """config.json."""
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found
