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
    from alignez_bake.site import SiteKind

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


def plan_of(base: ModelFolder, layers: Iterable[int]) -> EditPlan:
    """Linear edits that read the output of the attention and the MLP writer of these layers."""
    width = int(base.config["hidden_size"])
    edits = []
    for layer in layers:
        for kind in WRITERS:
            left, right = _factors(width, layer, kind)
            edits.append(Edit(Site(kind, layer), left.astype(np.float32), right.astype(np.float32)))
    return EditPlan(tuple(edits), base=base.fingerprint)


def _factors(width: int, layer: int, kind: SiteKind) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """L and R [width, RANK] for which L Rᵀ W has CHANGE times the size of W.

    The columns of W are independent of each other and alike in all directions, so ‖L Rᵀ W‖ / ‖W‖ is about
    ‖L Rᵀ‖ / √width, in the Frobenius norm, and ‖L Rᵀ‖² = tr(R Lᵀ L Rᵀ) = Σ (LᵀL) ∘ (RᵀR).
    """
    rng = np.random.default_rng([layer, list(WRITERS).index(kind)])
    left, right = (rng.normal(size=(width, RANK)) for _ in range(2))
    norm = math.sqrt(float(np.sum((left.T @ left) * (right.T @ right))))
    return CHANGE * math.sqrt(width) / norm * left, right


def share_in(result: Path, base: Path, layer: int, kind: SiteKind) -> float:
    """How much of the edit of one map a checkpoint holds: <W' - W, ΔW> / ‖ΔW‖², 1 if all of it, 0 if none.

    Args:
        result: folder of the checkpoint, ours or another tool's, with the base's names.
        base: folder of the base.
        layer: of the map.
        kind: of the map.
    """
    name = f"model.layers.{layer}.{WRITERS[kind]}.weight"
    before, after = (open_folder(folder).read(name).astype(np.float32) for folder in (base, result))
    left, right = (factor.astype(np.float32) for factor in _factors(len(before), layer, kind))
    change = left @ (right.T @ before)
    return float(np.vdot(after - before, change) / np.vdot(change, change))
