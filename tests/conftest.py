"""Fixtures of every test: tiny random models (see `tiny_models.py` for what exists), as factories."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import torch

from tests import tiny_models

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerFast


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> Iterator[None]:
    """Tiny models run faster on one thread, and the suite shares its machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    yield
    torch.set_num_threads(before)


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
    made: dict[tuple[str, bool | None], Path] = {}

    def folder(model_type: str, bias: bool | None = None) -> Path:
        key = (model_type, bias)
        if key not in made:
            made[key] = tiny_models.save_tiny(model_type, tmp_path_factory.mktemp(model_type), bias=bias)
        return made[key]

    return folder
