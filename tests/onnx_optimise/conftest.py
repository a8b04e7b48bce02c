"""Exported graphs, and what becomes of them, each made once a session."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pytest

from alignez_bake.onnx_optimise.optimise import optimise_graph
from tests.onnx_export.graphs import Graph

if TYPE_CHECKING:
    from collections.abc import Callable

    from alignez_bake.onnx_optimise.optimise import Optimised


class Pair(NamedTuple):
    """A graph as it was exported, and with fused operators."""

    plain: Graph
    optimised: Graph
    result: Optimised


@pytest.fixture(scope="session")
def optimised(tmp_path_factory, traced) -> Callable[..., Pair]:
    """`optimised(model_type, edits="base", opset=20)`."""
    made: dict[tuple[str, str, int], Pair] = {}

    def make(model_type: str, edits: str = "base", opset: int = 20) -> Pair:
        key = (model_type, edits, opset)
        if key not in made:
            target = tmp_path_factory.mktemp(f"{model_type}-{edits}-{opset}") / "optimised.onnx"
            _, source, names = traced(model_type, edits, opset)
            result = optimise_graph(source, target)
            made[key] = Pair(Graph(source, names), Graph(target, names), result)
        return made[key]

    return make
