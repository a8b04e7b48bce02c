"""A bake by the compiled rows and one by numpy: both are right, say what made them, and differ in last bits alone."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

from alignez_bake.commands.bake import bake
from alignez_bake.errors import BadInputError
from alignez_bake.lowering import row_kernel
from alignez_bake.lowering.row_kernel import VARIABLE, why_not_compiled
from alignez_bake.model_folder import open_model_folder
from alignez_bake.report.record import read_record
from alignez_bake.streaming import rounding_choice
from tests.baking import certify, plan_for, replace_tensors

SITES = ("attn_write", "mlp_write")
EDITED = ("o_proj.weight", "down_proj.weight", "c_proj.weight")


@pytest.fixture
def calls(monkeypatch):
    """Of the kernel, by name."""
    counted = {"edit_rows": 0, "add_product": 0}

    def count(module, name):
        function = getattr(row_kernel, name)

        def counting(*arguments):
            counted[name] += 1
            return function(*arguments)

        monkeypatch.setattr(module, name, counting)

    from alignez_bake.lowering import fold

    count(rounding_choice, "edit_rows")
    count(fold, "add_product")
    return counted


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "mixtral"])
def test_both_are_right_and_differ_in_last_bits_alone(model_type, dtype, calls, tmp_path, save_tiny, monkeypatch):
    if (why := why_not_compiled()) is not None:
        pytest.skip(why)
    base, found, shares = save_tiny(model_type, tmp_path / "base", dtype=dtype), {}, {}
    plan = plan_for(base, SITES, constant=model_type == "gpt2")
    for backend in ("compiled", "numpy"):
        monkeypatch.setenv(VARIABLE, backend)
        result = bake(base, plan, tmp_path / backend, rounding="nearest")
        assert read_record(result.path)["row_backend"] == backend
        assert certify(base, result.path, plan).verdict == "passed"
        found[backend] = open_model_folder(result.path).tensors
        shares[backend] = {one.name: one.share for one in result.levels[0].deliveries}
        if backend == "compiled":
            # Rows of an output; where rows are inputs, Rᵀ W is made in float64.
            assert calls["edit_rows"] > 0
            assert (calls["add_product"] > 0) == (model_type != "gpt2")
            calls.update(edit_rows=0, add_product=0)
    assert calls == {"edit_rows": 0, "add_product": 0}
    for name in found["numpy"].names():
        one, other = (found[backend].read(name).view(np.int16) for backend in ("compiled", "numpy"))
        apart = np.count_nonzero(one != other)
        # Each is right, as was certified. They differ where a tie lies within both bounds: some 2 (k + 4) 2⁻²⁴ of 2⁻⁸,
        # a thousandth of the values, for the k of these edits, and where values cancel, which few do.
        assert apart <= (max(2, one.size / 100) if name.endswith(EDITED) else 0), name
    for name, share in shares["numpy"].items():
        if share is not None:
            assert shares["compiled"][name] == pytest.approx(share, abs=1e-3)


def test_numpy_computes_what_the_kernel_does_not(calls, tmp_path, save_tiny, monkeypatch):
    """32 bits, and rounding that carries errors."""
    if (why := why_not_compiled()) is not None:
        pytest.skip(why)
    monkeypatch.setenv(VARIABLE, "compiled")
    base = save_tiny("llama", tmp_path / "single", dtype=torch.float32)
    bake(base, plan_for(base, SITES), tmp_path / "first")
    assert calls == {"edit_rows": 0, "add_product": 0}
    base = save_tiny("llama", tmp_path / "half", dtype=torch.bfloat16)
    result = bake(base, plan_for(base, SITES), tmp_path / "second", rounding="carry")
    assert calls["edit_rows"] == 0
    assert result.levels[0].verdict == "passed"


@pytest.mark.parametrize("place", ["weight", "strength"])
def test_what_is_not_finite_is_refused_by_either_alike(place, row_backend, tmp_path, save_tiny):
    base = save_tiny("llama", tmp_path / "base", dtype=torch.float16)
    plan = plan_for(base, ("mlp_write",))
    says = "the edit overflows F16 in model.layers.0.mlp.down_proj.weight: its largest value would be "
    if place == "weight":

        def spoilt(name, values):
            if "layers.1.mlp.down_proj" not in name:
                return None
            values = values.copy()
            values[-1, -1] = np.inf
            return values

        replace_tensors(base, spoilt)
        says = "tensor 'model.layers.1.mlp.down_proj.weight' in .* holds NaN or infinity"
    else:
        plan = plan.__class__(tuple(edit.scaled(1e9) for edit in plan.edits), base=plan.base)
    with pytest.raises(BadInputError, match=says):
        bake(base, plan, tmp_path / "out", allow_other_base=True)
    assert not (tmp_path / "out").exists()


def test_a_change_that_float32_cannot_square_is_measured_all_the_same(row_backend, tmp_path, save_tiny):
    """Of 1e-24: its squares are 1e-48, which float32 lacks. The base is as small, so that bf16 keeps the change."""
    base = save_tiny("llama", tmp_path / "base", dtype=torch.bfloat16)
    small = np.float32(1e-22)
    bf16 = ml_dtypes.bfloat16
    replace_tensors(base, lambda name, values: (values * small).astype(bf16) if "down_proj" in name else None)
    result = bake(base, plan_for(base, ("mlp_write",)), tmp_path / "out", rounding="nearest", allow_other_base=True)
    for delivery in result.levels[0].deliveries:
        assert delivery.share == pytest.approx(1, abs=0.1)
        assert delivery.relative_change > 0.01
