"""config.json may hold anything, beside sound weights: the folder is refused with our own error, or as it says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import alignez_bake.architectures.data
from alignez_bake.architectures.architecture import architecture_for
from alignez_bake.model_folder import open_model_folder
from tests.fuzz.running import SHORT_AND_LONG, read_or_refused, sound_ones_pass
from tests.fuzz.strategies import LLAMA, configs

DATA = Path(alignez_bake.architectures.data.__file__).parent


@pytest.fixture
def check(tmp_path, hooks):
    """`check(text)`: whether a model folder with this config is accepted; then its config is what the text says."""
    save_file({f"{i}": np.zeros(2, np.float32) for i in range(3)}, tmp_path / "model.safetensors")
    weights = (tmp_path / "model.safetensors").stat().st_size
    architecture_for(LLAMA)  # opens modules and a data file, once

    def read():
        model = open_model_folder(tmp_path)
        return model, model.fingerprint

    def check(text):
        (tmp_path / "config.json").write_bytes(text)
        found = read_or_refused(read, hooks, tmp_path, size=len(text) + weights, allowed=(tmp_path, DATA))
        if found is None:
            return False
        model, fingerprint = found
        assert model.config == json.loads(text)
        assert 1 <= model.num_layers <= 3
        assert fingerprint.model_type == model.architecture.model_type
        return True

    return check


@SHORT_AND_LONG
def test_sound_configs_and_damaged_ones(check, examples):
    sound_ones_pass(configs(), check, examples)
