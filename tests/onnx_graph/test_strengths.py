"""Strengths in the weights of inserted edits: with numpy as with torch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from alignez_bake.inserted.model import SiteInsert, inserted_model
from alignez_bake.model_folder import open_model_folder
from alignez_bake.onnx_export.strengths import strengths_in_weights
from alignez_bake.onnx_graph.strengths import scaled_parameters
from tests.inserted.saving import edit_at, load_inserted, plan_of, save_inserted


@pytest.mark.parametrize(
    ("dtype", "strength", "is_held"),
    [
        *((torch.float32, strength, True) for strength in (-1.5, 1 / 3, 1e-30)),
        *((torch.float32, strength, False) for strength in (1.0, 0.0, 1e-42, 3e38)),
        *((torch.float64, strength, True) for strength in (-1.5, 1e-42, 3e38)),
        (torch.float64, 0.0, False),
    ],
)
def test_initialisers_are_what_the_export_makes_of_the_parameters(tmp_path, save_tiny, dtype, strength, is_held):
    base = open_model_folder(save_tiny("llama", tmp_path / "base", dtype=dtype))
    edit = edit_at(base, "mlp_write", 1, gate="tanh", strength=strength)
    plan = plan_of(replace(edit, left=10 * edit.left), edit_at(base, "attn_write", 1))
    model = load_inserted(save_inserted(base.path, plan, tmp_path / "inserted"), dtype=dtype)
    made = inserted_model(base, [SiteInsert(site, plan.groups_at(site)) for site in plan.sites])
    scaled = scaled_parameters(made.tensors, made.config)
    with strengths_in_weights(model):
        for key, values in scaled.items():
            expected = model.get_parameter(key).detach().numpy()
            assert values.dtype == expected.dtype
            assert values.tobytes() == expected.tobytes(), key
    different = {key for key, values in scaled.items() if values.tobytes() != made.tensors[key].tobytes()}
    parts = {f"model.layers.1.mlp.down_proj.alignez_edits.0.{part}" for part in ("left", "bias")}
    assert different == (parts if is_held else set())


def test_a_shift_is_multiplied_whatever_its_strength():
    """Its product with the strength is a constant of the graph, so that the optimiser computes it."""
    config = {
        "alignez_edits": [
            {"module": "transformer.h.0.mlp", "parts": [{"groups": [{"edits": [{"name": "0", "strength": 0.0}]}]}]}
        ]
    }
    bias = np.ones(3, np.float32)
    (scaled,) = scaled_parameters({"h.0.mlp.alignez_edits.0.bias": bias}, config).values()
    assert scaled.tolist() == [0.0, 0.0, 0.0]
    assert bias.tolist() == [1.0, 1.0, 1.0]


def test_edits_of_other_modules_keep_their_own():
    edits = [{"name": "0", "strength": strength} for strength in (2.0, 3.0)]
    config = {
        "alignez_edits": [
            {"module": f"h.{layer}.mlp", "parts": [{"groups": [{"edits": [edit]}]}]}
            for layer, edit in zip((1, 11), edits, strict=True)
        ]
    }
    one = np.ones(1, np.float32)
    scaled = scaled_parameters({f"h.{layer}.mlp.alignez_edits.0.bias": one for layer in (1, 11)}, config)
    assert [values.item() for values in scaled.values()] == [2.0, 3.0]
