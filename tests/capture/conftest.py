"""Tiny models in float64, and pairs of many lengths."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from alignez_bake.capture.sequences import TokenisedPair
from alignez_bake.language_model.loading import load_language_model
from alignez_bake.model_folder import open_model_folder
from tests.tiny_models import BOS_ID, VOCABULARY, runs_in_its_dtype


@pytest.fixture(scope="session")
def tiny_lm64(tiny_folder):
    """`tiny_lm64(model_type, bias=None)`: a tiny model in float64, loaded once a session. Never change it."""
    loaded = {}

    def load(model_type, bias=None):
        key = (model_type, bias)
        if key not in loaded:
            loaded[key] = load_language_model(open_model_folder(tiny_folder(model_type, bias)), dtype=torch.float64)
            runs_in_its_dtype(loaded[key].model)
        return loaded[key]

    return load


@pytest.fixture(scope="session")
def pairs() -> list[TokenisedPair]:
    """Seven pairs of random ids; no two sequences of a context have the same length."""
    rng = np.random.default_rng(0)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(rng.integers(3, VOCABULARY, count).tolist())

    made = []
    for index, length in enumerate((5, 9, 3, 12, 1, 7, 10)):
        prompt = ids(length)
        made.append(
            TokenisedPair(
                prompts={
                    "plain": (BOS_ID, *prompt),
                    "good": (BOS_ID, *ids(4), *prompt),
                    "bad": (BOS_ID, *ids(6), *prompt),
                },
                shared=length,
                answers={"good": ids(1 + (3 * index) % 7), "bad": ids(2 + (5 * index) % 7)},
                name=f"query {index}",
            )
        )
    return made
