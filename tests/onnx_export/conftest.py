"""Models and their graphs, each exported once a session."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pytest
import torch

from tests.onnx_export.graphs import Graph, Torch
from tests.running import load

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedModel


class Exported(NamedTuple):
    """A model, the graph made of it, and the base without edits."""

    torch: Torch
    graph: Graph
    base: PreTrainedModel


@pytest.fixture(scope="session")
def exported(traced, tiny_folder) -> Callable[..., Exported]:
    """`exported(model_type, "base" | "folded" | "inserted")`."""
    made: dict[tuple[str, str], Exported] = {}

    def export(model_type: str, edits: str) -> Exported:
        key = (model_type, edits)
        if key not in made:
            model, path, names = traced(model_type, edits)
            made[key] = Exported(Torch(model), Graph(path, names), load(tiny_folder(model_type), torch.float32))
        return made[key]

    return export
