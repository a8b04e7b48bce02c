"""How far a change may be off whose Rᵀ W was summed up in float32: bounded, and by no more than it needs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from alignez_bake.edit_plan import EditPlan
from alignez_bake.lowering.fold import EditedTensors
from alignez_bake.lowering.matrix_change import row_blocks
from alignez_bake.model_folder import open_model_folder
from tests.baking import lowered, plan_for

NAME = "model.layers.0.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def edited(tmp_path_factory, save_tiny):
    """A llama in bf16 with two edits one behind the other at one map, each of which reads the output."""
    base = save_tiny("llama", tmp_path_factory.mktemp("projected") / "base", dtype=torch.bfloat16)
    folder = open_model_folder(base)
    first, second = (
        [edit for edit in plan_for(base, ("mlp_write",), seed=seed).edits if edit.site.layer == 0] for seed in (1, 2)
    )
    plan = EditPlan((*first, *second), base=folder.fingerprint)
    return EditedTensors(lowered(folder, plan).folds, folder.tensors)


def parts(edited, dtype, *, bounded=False):
    (part,) = edited.matrix_change(NAME, 0, dtype, bounded=bounded).parts
    return part


@pytest.mark.parametrize("values", [64, 256, 1 << 18])
def test_float32_stays_within_the_bound(values, edited, monkeypatch):
    monkeypatch.setattr(row_blocks, "__defaults__", (values,))
    single, double = parts(edited, np.float32), parts(edited, np.float64, bounded=True)
    assert single.a_matrix.dtype == np.float32
    # What rounding A itself to float32 adds belongs to `arithmetic_tolerance`.
    own = 2.0**-24 * np.abs(double.a_matrix)
    off = np.abs(single.a_matrix - double.a_matrix)
    assert (off <= double.a_error + own).all()
    assert off.any()
    rows = min(32, max(1, values // double.a_matrix.shape[1]))
    assert double.a_error.max() <= (rows + 2) * 2.0**-24 * 30 * np.abs(double.a_matrix).max()


def test_the_bound_reaches_the_change(edited):
    change = edited.matrix_change(NAME, 0, np.float64, bounded=True)
    base = np.zeros((change.rows, change.columns))
    (part,) = change.parts
    found = change.projection_error(base.shape, 0)
    np.testing.assert_allclose(found, np.abs(part.b_matrix) @ part.a_error)
    np.testing.assert_array_equal(change.projection_error((3, change.columns), 5), found[5:8])
    assert (found > 0).all()


def test_nobody_pays_for_a_bound_that_was_not_asked_for(edited):
    assert parts(edited, np.float64).a_error is None
    assert parts(edited, np.float32).a_error is None
