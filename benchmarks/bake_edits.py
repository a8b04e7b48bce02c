"""The edits that are baked, and whether a result has them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, Literal, get_args

import numpy as np

from alignez_bake.edit import Edit
from alignez_bake.edit_plan import EditPlan
from alignez_bake.safetensors_io.reader import open_folder
from alignez_bake.site import Site

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from numpy.typing import NDArray

    from alignez_bake.model_folder import ModelFolder
    from alignez_bake.site import Reads, SiteKind

Quarter = Literal["first", "middle", "last"]
QUARTERS: Final[tuple[Quarter, ...]] = get_args(Quarter)
RANK: Final = 16
CHANGE: Final = 1e-2
"""‖ΔW‖ / ‖W‖ of each edited map: rounding to bf16 leaves more than 0.99 of it."""
WRITERS: Final[dict[SiteKind, str]] = {"attn_write": "self_attn.o_proj", "mlp_write": "mlp.down_proj"}


def quarter_of(layers: int, quarter: Quarter) -> range:
    """A quarter of the layers, at least one, next to each other: where an edit of some layers mostly lies."""
    number = max(1, layers // 4)
    first = {"first": 0, "middle": (layers - number) // 2, "last": layers - number}[quarter]
    return range(first, first + number)


def plan_of(base: ModelFolder, layers: Iterable[int], reads: Reads = "output") -> EditPlan:
    """Linear edits of the attention and the MLP writer of these layers, that read the writer's output or its input."""
    edits = []
    for layer in layers:
        for kind in WRITERS:
            shape = base.tensors.entry(_name(layer, kind)).shape
            left, right = _factors(shape, layer, kind, reads, float(base.config["initializer_range"]))
            edits.append(Edit(Site(kind, layer), left.astype(np.float32), right.astype(np.float32), reads=reads))
    return EditPlan(tuple(edits), base=base.fingerprint)


def _factors(
    shape: tuple[int, ...], layer: int, kind: SiteKind, reads: Reads, spread: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """L [d_out, RANK] and R, by which W [d_out, d_in] changes by CHANGE times its size.

    That is by L Rᵀ where the input is read, which has ‖L Rᵀ‖² = tr(R Lᵀ L Rᵀ) = Σ (LᵀL) ∘ (RᵀR), and ‖W‖ is about
    spread · √(d_out · d_in). It is by L Rᵀ W where the output is read: as the columns of W are independent of each
    other and alike in all directions, ‖L Rᵀ W‖ / ‖W‖ is about ‖L Rᵀ‖ / √d_out.
    """
    d_out, d_in = shape
    rng = np.random.default_rng([layer, list(WRITERS).index(kind)])
    left, right = (rng.normal(size=(width, RANK)) for width in (d_out, d_out if reads == "output" else d_in))
    norm = math.sqrt(float(np.sum((left.T @ left) * (right.T @ right))))
    size = math.sqrt(d_out) if reads == "output" else spread * math.sqrt(d_out * d_in)
    return CHANGE * size / norm * left, right


def share_in(result: Path, base: ModelFolder, layer: int, kind: SiteKind, reads: Reads = "output") -> float:
    """How much of the edit of one map a checkpoint holds: <W' - W, ΔW> / ‖ΔW‖², 1 if all of it, 0 if none.

    Args:
        result: folder of the checkpoint, ours or another tool's, with the base's names.
        base: the base.
        layer: of the map.
        kind: of the map.
        reads: of the edits.
    """
    name = _name(layer, kind)
    before, after = (folder.read(name).astype(np.float32) for folder in (base.tensors, open_folder(result)))
    spread = float(base.config["initializer_range"])
    left, right = (factor.astype(np.float32) for factor in _factors(before.shape, layer, kind, reads, spread))
    change = left @ (right.T @ before if reads == "output" else right.T)
    return float(np.vdot(after - before, change) / np.vdot(change, change))


def _name(layer: int, kind: SiteKind) -> str:
    return f"model.layers.{layer}.{WRITERS[kind]}.weight"
