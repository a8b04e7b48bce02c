"""Fixtures of every test: tiny random models (see `tiny_models.py` for what exists), as factories."""

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING

import pytest
import torch

from tests import running, tiny_models

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from tests.onnx_export.making import Traced


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests begin: one of them at the end would leave the other cores with nothing to do."""
    items.sort(key=lambda item: item.path.name != "test_readme.py")


def pytest_collection_finish() -> None:
    """Thousands of collected tests stay to the end: the collector of garbage need not walk over them every time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> Iterator[None]:
    """Tiny models run faster on one thread, and the suite shares its machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    yield
    torch.set_num_threads(before)


@pytest.fixture
def short_certificates() -> Iterator[None]:
    """Certificates in this process are those of `running.short_certificates`."""
    with running.short_certificates():
        yield


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., PreTrainedModel]:
    """`tiny_model(model_type, *, bias, seed=0, dtype=float32, overrides=None)` in memory."""
    return tiny_models.tiny_model


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    """`tiny_tokenizer(*, bos=True, pad=True, chat_template=None)`."""
    return tiny_models.tiny_tokenizer


@pytest.fixture(scope="session")
def save_tiny() -> Callable[..., Path]:
    """`save_tiny(model_type, path, *, bias=None, seed=0, dtype=..., overrides=None, tokenizer=None, ...) -> path`."""
    return tiny_models.save_tiny


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny_folder(model_type, bias=None)`: a saved tiny model, made once a session. Never write into it."""
    made: dict[tuple[str, bool], Path] = {}

    def folder(model_type: str, bias: bool | None = None) -> Path:
        key = (model_type, tiny_models.with_bias(model_type, bias))
        if key not in made:
            made[key] = tiny_models.save_tiny(model_type, tmp_path_factory.mktemp(model_type), bias=bias)
        return made[key]

    return folder


@pytest.fixture(scope="session")
def traced(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Callable[..., Path]) -> Callable[..., Traced]:
    """`traced(model_type, "base" | "folded" | "inserted", opset=23, bias=None)`: a tiny model and its graph.

    An export takes seconds, so tests of graphs share them. Never write into their folders.
    """
    # Here, since most tests need neither.
    from alignez_bake.onnx_export.graph import export_graph
    from tests.onnx_export.making import MAKE, Traced

    made: dict[tuple[str, str, int, bool], Traced] = {}

    def trace(model_type: str, edits: str, opset: int = 23, bias: bool | None = None) -> Traced:
        key = (model_type, edits, opset, tiny_models.with_bias(model_type, bias))
        if key not in made:
            folder = tmp_path_factory.mktemp(f"{model_type}-{edits}-{opset}")
            model = MAKE[edits](tiny_folder(model_type, bias), folder)
            target = folder / "model.onnx"
            made[key] = Traced(model, target, export_graph(model, target, opset=opset))
        return made[key]

    return trace
