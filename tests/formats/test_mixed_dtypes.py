"""One model with tensors of several float dtypes: each edited one keeps its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import pytest
import torch

from alignez_bake.commands.bake import bake
from alignez_bake.commands.verify import verify
from alignez_bake.model_folder import open_model_folder
from alignez_bake.safetensors_io.dtypes import cast_once, numpy_dtype_of
from alignez_bake.safetensors_io.reader import open_folder
from alignez_bake.safetensors_io.writer import write_tensors
from tests.baking import plan_for
from tests.tiny_models import save_tiny

if TYPE_CHECKING:
    from pathlib import Path

DTYPES = {
    "model.layers.0.self_attn.o_proj.weight": "BF16",
    "model.layers.1.self_attn.o_proj.weight": "F16",
    "model.layers.0.mlp.down_proj.weight": "F32",
    "model.layers.1.mlp.down_proj.weight": "F64",
    "model.layers.0.mlp.up_proj.weight": "F64",
    "model.norm.weight": "F16",
}
UNITS = {"BF16": 2.0**-8, "F16": 2.0**-11, "F32": 2.0**-24, "F64": 2.0**-53}
FLOAT32_SLACK = 2.0**-20
"""Of 16 bits, computed in float32: how near to the middle between two values either is right, in units of the value."""


def mix_dtypes(folder: Path) -> None:
    tensors = open_folder(folder)
    for file in tensors.files:
        values = {name: tensors.read(name) for name in tensors.header(file).entries}
        mixed = {name: array.astype(numpy_dtype_of(DTYPES.get(name, "BF16"))) for name, array in values.items()}
        write_tensors(folder / file, mixed, {"format": "pt"})


@pytest.mark.parametrize("shard_size", ["5GB", "20KB"])
def test_each_edited_tensor_keeps_its_dtype(tmp_path: Path, shard_size: str) -> None:
    path = save_tiny("llama", tmp_path / "base", dtype=torch.bfloat16, max_shard_size=shard_size)
    mix_dtypes(path)
    base = open_model_folder(path)
    assert {base.tensors.entry(name).dtype for name in base.tensors} == set(UNITS)
    plan = plan_for(base, ("attn_write", "mlp_write"))
    out = tmp_path / "out"
    assert bake(path, plan, out, rounding="nearest").verdict == "passed"
    assert verify(out, path, level="tensors").verdict == "passed"
    result = open_folder(out)
    edited = dict(
        zip(
            (
                f"model.layers.{layer}.{path}.weight"
                for path in ("self_attn.o_proj", "mlp.down_proj")
                for layer in range(2)
            ),
            plan.edits,
            strict=True,
        )
    )
    for name in base.tensors:
        entry = base.tensors.entry(name)
        assert (result.entry(name).dtype, result.entry(name).shape) == (entry.dtype, entry.shape)
        if name not in edited:
            assert b"".join(result.iter_blocks(name)) == b"".join(base.tensors.iter_blocks(name))
            continue
        edit = edited[name]
        assert edit.left is not None
        assert edit.right is not None
        weight = base.tensors.read(name).astype(np.float64)
        exact = weight + edit.strength * edit.left.astype(np.float64) @ (edit.right.astype(np.float64).T @ weight)
        unit = UNITS[entry.dtype]
        assert np.linalg.norm(exact - weight) > 100 * unit * np.linalg.norm(weight)
        found = result.read(name)
        if entry.dtype == "F64":
            np.testing.assert_allclose(found, exact, rtol=0, atol=1e-12 * np.abs(exact).max())
            continue
        nearest = cast_once(exact, found.dtype)
        off = (found != nearest).reshape(-1)
        slack = FLOAT32_SLACK * np.abs(exact).max() if entry.dtype in ("BF16", "F16") else 1e-4 * unit
        middle = (found.astype(np.float64) + nearest.astype(np.float64)) / 2
        assert (np.abs(exact - middle).reshape(-1)[off] <= slack).all()
    assert open_folder(out).read("model.layers.0.self_attn.o_proj.weight").dtype == ml_dtypes.bfloat16
