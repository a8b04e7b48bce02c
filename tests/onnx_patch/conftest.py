"""Graphs to patch, each exported once a session. Never write into them."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from tests.onnx_patch.graphs import builder_graph, dynamo_graph, optimum_graph, torchscript_graph

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_MAKE = {
    "dynamo": lambda base, folder: dynamo_graph(base, folder, external=False),
    "external": lambda base, folder: dynamo_graph(base, folder, external=True),
    "torchscript": torchscript_graph,
    "optimum": optimum_graph,
    "builder": lambda base, folder: builder_graph(base, folder, precision="fp32"),
    "builder-int4": lambda base, folder: builder_graph(base, folder, precision="int4"),
}


@pytest.fixture(scope="session")
def graph_folder(tmp_path_factory, tiny_folder) -> Callable[..., Path]:
    """`graph_folder(kind, model_type, bias=None)`: kind is one of `_MAKE`."""
    made: dict[tuple[str, str, bool | None], Path] = {}

    def folder(kind: str, model_type: str, bias: bool | None = None) -> Path:
        key = (kind, model_type, bias)
        if key not in made:
            target = tmp_path_factory.mktemp(f"{kind}-{model_type}")
            _MAKE[kind](tiny_folder(model_type, bias), target)
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
