"""Models of which graphs are made: a base, with edits in its weights, and with edits as modules."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from alignez_bake.commands.bake import bake
from alignez_bake.edit_file import write_edits
from alignez_bake.model_folder import open_model_folder
from tests.baking import plan_for
from tests.inserted.saving import edit_at, load_inserted, plan_of, save_inserted
from tests.running import load

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

    from alignez_bake.onnx_export.names import GraphNames

GATED = "attn_write"
"""Layer 0, relu, neither s nor c."""
LAST = "mlp_write"
"""Layer 1, tanh, at the last position, with s, c and a strength."""


class Traced(NamedTuple):
    """A model, and the graph made of it: `model.onnx`, alone in its folder but for what the model was made of."""

    model: PreTrainedModel
    path: Path
    names: GraphNames


def _folded(base: Path, folder: Path) -> PreTrainedModel:
    write_edits(plan_for(base), folder / "edits.safetensors")
    bake(base, folder / "edits.safetensors", folder / "baked")
    return load(folder / "baked", torch.float32)


def _inserted(base: Path, folder: Path) -> PreTrainedModel:
    description = open_model_folder(base)
    plan = plan_of(
        replace(edit_at(description, GATED, 0, gate="relu"), offset=None, bias=None),
        edit_at(description, LAST, 1, gate="tanh", positions="last", strength=-1.5),
    )
    return load_inserted(save_inserted(base, plan, folder / "inserted"), dtype=torch.float32)


MAKE: dict[str, Any] = {
    "base": lambda base, folder: load(base, torch.float32),
    "folded": _folded,
    "inserted": _inserted,
}
