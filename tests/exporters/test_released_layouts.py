"""Files as they were released: other prefixes, mask buffers, renamed heads. Each is baked and proved = hooked."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from alignez_bake.certificate.forward import SITE_TOLERANCE, SIXTEEN_BIT_FACTOR
from alignez_bake.commands.bake import bake
from alignez_bake.lowering.hooks import edited_by_hooks
from alignez_bake.model_folder import open_model_folder
from tests.baking import plan_for, rewrite_names
from tests.running import load, relative, run
from tests.tiny_models import CONTEXT

FP32_END = 1e-5
MARGIN = 100
KINDS = ("attn_write", "mlp_write")


def gpt2_layout(tensors):
    """openai's gpt2: saved from the headless model, with the causal mask of each layer."""
    mask = np.tril(np.ones((1, 1, CONTEXT, CONTEXT), np.float32))
    plain = {name.removeprefix("transformer."): values for name, values in tensors.items()}
    return plain | {f"h.{layer}.attn.bias": mask for layer in range(2)}


def pythia_layout(tensors):
    """EleutherAI's pythia: masks, their fill value (-1e9, which is -inf in fp16), and rotary frequencies."""
    buffers = {}
    for layer in range(2):
        place = f"gpt_neox.layers.{layer}.attention"
        buffers[f"{place}.bias"] = np.tril(np.ones((1, 1, CONTEXT, CONTEXT), np.bool_))
        buffers[f"{place}.rotary_emb.inv_freq"] = np.array([1.0, 0.1], np.float16)
        with np.errstate(over="ignore"):
            buffers[f"{place}.masked_bias"] = np.array(-1e9, np.float16)
    assert np.isneginf(buffers["gpt_neox.layers.0.attention.masked_bias"])
    assert "embed_out.weight" in tensors
    return tensors | buffers


def opt_layout(tensors):
    """facebook's opt: saved from the headless model."""
    return {name.removeprefix("model."): values for name, values in tensors.items()}


LAYOUTS = {"gpt2": gpt2_layout, "gpt_neox": pythia_layout, "opt": opt_layout}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("model_type", LAYOUTS)
def test_released_files_are_baked_as_hooked(model_type, dtype, tmp_path, save_tiny):
    path = save_tiny(model_type, tmp_path / "base", dtype=dtype, bias=True)
    rewrite_names(path, LAYOUTS[model_type])
    base = open_model_folder(path)
    plan = plan_for(base, KINDS, constant=True, scale=0.3)
    assert bake(path, plan, tmp_path / "out").verdict == "passed"

    result = open_model_folder(tmp_path / "out")
    assert result.tensors.names() == base.tensors.names()
    edited = {
        name
        for name in base.tensors.names()
        if base.tensors.read(name).tobytes() != result.tensors.read(name).tobytes()
    }
    assert len(edited) == 8

    paths = [base.architecture.module_path(site) for site in plan.sites]
    original, baked, exact = load(path, dtype), load(tmp_path / "out", dtype), load(path, torch.float32)
    with edited_by_hooks(original, base.architecture, plan):
        hooked = run(original, base.architecture, paths)
    with edited_by_hooks(exact, base.architecture, plan):
        reference = run(exact, base.architecture, [])
    unedited, found = run(exact, base.architecture, []), run(baked, base.architecture, [])
    for index in range(2):  # logits, residual stream
        bound = FP32_END if dtype == torch.float32 else SIXTEEN_BIT_FACTOR * relative(hooked[index], reference[index])
        assert relative(found[index], reference[index]) <= bound
        assert relative(unedited[index], reference[index]) > MARGIN * FP32_END
    for module, (module_input, output) in hooked[2].items():
        assert relative(baked.get_submodule(module)(module_input), output) <= SITE_TOLERANCE[dtype]


def test_the_fill_value_of_a_mask_stays_minus_infinity_in_a_wider_dtype(tmp_path, save_tiny):
    path = save_tiny("gpt_neox", tmp_path / "base", dtype=torch.float16)
    rewrite_names(path, pythia_layout)
    assert bake(path, plan_for(path), tmp_path / "out", dtype="float32").verdict == "passed"
    values = open_model_folder(tmp_path / "out").tensors.read("gpt_neox.layers.1.attention.masked_bias")
    assert values.dtype == np.float32
    assert np.isneginf(values)
