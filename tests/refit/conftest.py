"""Tiny models in float64, texts of many lengths, and gated edits that open at about half of the tokens."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from alignez_bake.language_model.loading import load_language_model
from alignez_bake.model_folder import open_model_folder
from tests.random_edits import random_edit
from tests.tiny_models import BOS_ID, VOCABULARY


@pytest.fixture(scope="session")
def tiny_lm64(tiny_folder):
    """`tiny_lm64(model_type)`: a tiny model in float64, loaded once a session. Never change it."""
    loaded = {}

    def load(model_type):
        if model_type not in loaded:
            loaded[model_type] = load_language_model(open_model_folder(tiny_folder(model_type)), dtype=torch.float64)
        return loaded[model_type]

    return load


@pytest.fixture(scope="session")
def sequences() -> list[list[int]]:
    """40 texts of random ids of 3 to 24 tokens."""
    rng = np.random.default_rng(0)
    return [[BOS_ID, *rng.integers(3, VOCABULARY, 2 + (7 * index) % 22).tolist()] for index in range(40)]


@pytest.fixture(scope="session")
def edit_at():
    """`edit_at(lm, site, reads="output", gate="relu", **settings)`: a gated edit of the site's widths."""

    def make(lm, site, *, reads="output", gate="relu", offset=None, bias=True, **settings):
        hidden = lm.model.config.hidden_size
        d_out = d_read = hidden
        if site.kind in lm.architecture.sites:
            module = lm.model.get_submodule(lm.architecture.module_path(site))
            d_in, d_out = module.weight.shape if module.__class__.__name__ == "Conv1D" else module.weight.shape[::-1]
            rows = lm.architecture.linear_site(site.kind).row_slice(d_out)
            d_out = rows.stop - rows.start
            d_read = {"output": d_out, "input": d_in, "block": hidden}[reads]
        edit = random_edit(site, d_out, d_read, reads=reads, constant=True, **settings)
        return replace(
            edit,
            gate=gate,
            offset=edit.offset if offset is None else np.full(edit.rank, float(offset)),
            bias=edit.bias if bias else None,
        )

    return make
