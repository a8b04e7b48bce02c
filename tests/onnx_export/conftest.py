"""Models and their graphs, each exported once a session."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch

from alignez_bake.commands.bake import bake
from alignez_bake.edit_file import write_edits
from alignez_bake.model_folder import open_model_folder
from alignez_bake.onnx_export.graph import export_graph
from tests.baking import plan_for
from tests.inserted.saving import edit_at, load_inserted, plan_of, save_inserted
from tests.onnx_export.graphs import Graph, Torch
from tests.running import load

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from transformers import PreTrainedModel

GATED = "attn_write"
"""Layer 0, relu, neither s nor c."""
LAST = "mlp_write"
"""Layer 1, tanh, at the last position, with s, c and a strength."""


class Exported(NamedTuple):
    """A model, the graph made of it, and the base without edits."""

    torch: Torch
    graph: Graph
    base: PreTrainedModel


@pytest.fixture(scope="session")
def exported(tmp_path_factory, tiny_folder) -> Callable[..., Exported]:
    """`exported(model_type, "base" | "folded" | "inserted")`."""
    made: dict[tuple[str, str], Exported] = {}

    def export(model_type: str, edits: str) -> Exported:
        key = (model_type, edits)
        if key not in made:
            folder = tmp_path_factory.mktemp(f"{model_type}-{edits}")
            base = tiny_folder(model_type)
            model = MAKE[edits](base, folder)
            target = folder / "model.onnx"
            made[key] = Exported(Torch(model), Graph(target, export_graph(model, target)), load(base, torch.float32))
        return made[key]

    return export


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
