"""Graphs to patch, each exported once a session. Never write into them."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from tests.onnx_patch.graphs import builder_graph, optimum_graph, torchscript_graph, traced_graph
from tests.tiny_models import with_bias

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_MAKE = {
    "torchscript": torchscript_graph,
    "optimum": optimum_graph,
    "builder": lambda base, folder: builder_graph(base, folder, precision="fp32"),
    "builder-int4": lambda base, folder: builder_graph(base, folder, precision="int4"),
}


@pytest.fixture(scope="session")
def graph_folder(tmp_path_factory, tiny_folder, traced) -> Callable[..., Path]:
    """`graph_folder(kind, model_type, bias=None)`: kind is `dynamo`, `external` or one of `_MAKE`."""
    made: dict[tuple[str, str, bool], Path] = {}

    def folder(kind: str, model_type: str, bias: bool | None = None) -> Path:
        key = (kind, model_type, with_bias(model_type, bias))
        if key not in made:
            target = tmp_path_factory.mktemp(f"{kind}-{model_type}")
            base = tiny_folder(model_type, bias)
            if kind in ("dynamo", "external"):
                graph = traced(model_type, "base", bias=bias).path
                traced_graph(base, graph, target, external=kind == "external")
            else:
                _MAKE[kind](base, target)
            made[key] = target
        return made[key]

    return folder


@pytest.fixture
def own_graph(graph_folder, tmp_path) -> Callable[..., Path]:
    """`own_graph(kind, model_type, bias=None)`: a copy to write into."""

    def folder(kind: str, model_type: str, bias: bool | None = None) -> Path:
        target = tmp_path / "base"
        shutil.copytree(graph_folder(kind, model_type, bias), target)
        return target

    return folder
