"""config.json and header may say anything of where sites lie: a slot is as the files have it, or is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import alignez_bake.architectures.data
import alignez_bake.rehome.data
from alignez_bake.architectures.architecture import architecture_for, known_model_types
from alignez_bake.lowering.decide import Refusal
from alignez_bake.lowering.slot import find_slot
from alignez_bake.model_folder import open_model_folder
from alignez_bake.rehome.places import places_of
from alignez_bake.rehome.rehome import rehome
from tests.fuzz.agreement import library_tensors
from tests.fuzz.model_folders import model_folders
from tests.fuzz.running import SHORT_AND_LONG, hold_for_each, read_or_refused

DATA = tuple(Path(data.__file__).parent for data in (alignez_bake.architectures.data, alignez_bake.rehome.data))
FLOATS = ("F64", "F32", "F16", "BF16")


@pytest.fixture
def check(tmp_path, hooks):
    """`check(made)`: the slot of a site where it is accepted, which is held against the files."""
    for model_type in known_model_types():  # opens data files, once
        architecture_for({"model_type": model_type})
        places_of(model_type)

    def check(made):
        (tmp_path / "config.json").write_bytes(made.config)
        (tmp_path / "model.safetensors").write_bytes(made.weights)
        bounds = {"size": len(made.config) + len(made.weights), "allowed": (tmp_path, *DATA)}
        model = read_or_refused(lambda: open_model_folder(tmp_path, fp8=True), hooks, tmp_path, **bounds)
        if model is None:
            return None
        slot = read_or_refused(lambda: find_slot(model, made.site), hooks, "", **bounds)
        if slot is None:
            return None
        assert_as_in_the_files(slot, library_tensors(tmp_path / "model.safetensors")[0], model)
        if slot.kind == "map":
            read_or_refused(lambda: look_for_room(model, made.site), hooks, "", **bounds)
        return slot

    return check


def assert_as_in_the_files(slot, tensors, model):
    """Widths, dtype and bias are those of the tensors that the slot names."""
    assert min(slot.d_out, slot.d_in) >= 1
    assert (slot.kind == "stream") == (not slot.weights)
    for name in slot.weights:
        dtype, shape, _ = tensors[name]
        assert dtype in FLOATS or (dtype == "F8_E4M3" and model.fp8_blocks is not None)
        assert slot.dtype == (dtype if dtype in FLOATS else "BF16")
        part = slot.weight_rows(np.broadcast_to(np.zeros(()), shape))
        assert part.shape[-2] == slot.d_out
        assert part.shape[-1] == slot.d_in or "shared_experts" in name
    if slot.bias is not None:
        dtype, shape, _ = tensors[slot.bias]
        assert dtype in FLOATS
        assert shape[-1] >= slot.d_out


def look_for_room(model, site):
    """An equivalent model with a bias and hidden units there has the site as well, or says why there is none."""
    for wanted in ({"bias_sites": [site]}, {"units": {site.layer: 1}} if site.kind == "mlp_write" else {}):
        found = rehome(model, **wanted)
        if isinstance(found, Refusal):
            assert found.reason.isprintable()
            continue
        slot = find_slot(found, site)
        assert slot.bias is not None or "bias_sites" not in wanted
        assert all(found.tensors.entry(name).nbytes for name in slot.weights)


@SHORT_AND_LONG
def test_sound_folders_and_damaged_ones(check, examples):
    def judge(made):
        assert check(made) is not None or not made.sound

    hold_for_each(model_folders(), judge, examples)
