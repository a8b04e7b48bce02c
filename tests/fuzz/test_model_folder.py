"""config.json may hold anything, beside sound weights: the folder is refused with our own error, or as it says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import alignez_bake.architectures.data
from alignez_bake.architectures.architecture import architecture_for
from alignez_bake.errors import BadInputError
from alignez_bake.model_folder import open_model_folder
from tests.fuzz.agreement import assert_names
from tests.fuzz.running import SHORT_AND_LONG, hold_for_each
from tests.fuzz.strategies import LLAMA, configs

DATA = Path(alignez_bake.architectures.data.__file__).parent


@pytest.fixture
def check(tmp_path, hooks):
    """`check(text)`: whether a model folder with this config is accepted; then its config is what the text says."""
    save_file({f"{i}": np.zeros(2, np.float32) for i in range(3)}, tmp_path / "model.safetensors")
    weights = (tmp_path / "model.safetensors").stat().st_size
    architecture_for(LLAMA)  # opens modules and a data file, once

    def check(text):
        (tmp_path / "config.json").write_bytes(text)
        try:
            with hooks.watching() as watch:
                model = open_model_folder(tmp_path)
                fingerprint = model.fingerprint
        except BadInputError as error:
            assert_names(error, tmp_path)
            return False
        finally:
            watch.check(len(text) + weights, (tmp_path, DATA))
        assert model.config == json.loads(text)
        assert 1 <= model.num_layers <= 3
        assert fingerprint.model_type == model.architecture.model_type
        return True

    return check


@SHORT_AND_LONG
def test_sound_configs_and_damaged_ones(check, examples):
    def judge(made):
        assert check(made.data) or not made.sound

    hold_for_each(configs(), judge, examples)
