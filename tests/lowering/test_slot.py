"""Where a site lies in the files, and what lies there that cannot be edited."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import pytest

from alignez_bake.errors import BadInputError
from alignez_bake.lowering.slot import find_slot
from alignez_bake.model_folder import open_model_folder
from alignez_bake.site import LAYERLESS, Site
from tests.baking import rewrite_names
from tests.tiny_models import COMBINATIONS, MODEL_TYPES

EXPERT = "model.layers.1.block_sparse_moe.experts.2.w2.weight"


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_stream_has_a_width_and_no_tensor(model_type, tiny_folder):
    base = open_model_folder(tiny_folder(model_type))
    slot = find_slot(base, Site("residual", 1))
    width = base.config.get("hidden_size", base.config.get("n_embd"))
    assert (slot.kind, slot.weights, slot.bias, slot.d_out, slot.d_in) == ("stream", (), None, width, width)
    assert "no tensor of its own" in slot.obstacle


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("kind", ["residual", "attn_write", "mlp_write"])
def test_a_layer_that_is_not_there_is_refused(model_type, kind, tiny_folder):
    with pytest.raises(BadInputError, match="layers 0 to 1"):
        find_slot(open_model_folder(tiny_folder(model_type)), Site(kind, 2))


@pytest.mark.parametrize(("model_type", "bias"), COMBINATIONS)
def test_the_part_of_a_stored_weight_is_a_view_of_the_sites_shape(model_type, bias, tiny_folder):
    base = open_model_folder(tiny_folder(model_type, bias))
    for site in (Site("embed"), Site("lm_head"), *(Site(kind, 1) for kind in base.architecture.sites)):
        slot = find_slot(base, site)
        for name in slot.weights:
            stored = base.tensors.read(name).copy()
            part = slot.weight_rows(stored)
            experts = stored.shape[:-2]  # none, where each has a tensor of its own
            d_in = part.shape[-1] if "shared_experts" in name else slot.d_in
            assert part.shape == (*experts, slot.d_out, d_in)
            part[...] = 0
            assert np.count_nonzero(stored == 0) == part.size


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        (EXPERT, lambda values: values[:, :-1], "experts at site mlp_write.1 differ in shape or dtype"),
        (EXPERT, lambda values: values.T.copy(), "experts .* differ in shape"),
        (EXPERT, lambda values: values.astype(np.float16), "differ in shape or dtype"),
        (EXPERT, lambda values: values[None], "must have 2 dimensions"),
        (EXPERT, lambda values: values.astype(ml_dtypes.float8_e4m3fn), "stored as F8_E4M3.*unquantised base"),
        (EXPERT, lambda values: None, r"experts\.2\.w2\.weight' is not in the file"),
        ("model.embed_tokens.weight", lambda values: values.reshape(-1), "at site embed has shape .* 2 dimensions"),
        ("model.embed_tokens.weight", lambda values: values.astype(np.int8), "at site embed is stored as I8"),
        ("model.embed_tokens.weight", lambda values: None, r"embed_tokens\.weight' is not in the file"),
    ],
)
def test_what_cannot_be_edited_is_refused_by_name(name, change, words, save_tiny, tmp_path):
    folder = save_tiny("mixtral", tmp_path)

    def changed(tensors):
        values = change(tensors.pop(name))
        return tensors if values is None else {**tensors, name: values}

    rewrite_names(folder, changed)
    site = Site("mlp_write", 1) if name == EXPERT else Site("embed")
    with pytest.raises(BadInputError, match=words):
        find_slot(open_model_folder(folder), site)


def test_files_without_the_prefix_have_the_same_slots(save_tiny, tmp_path):
    folder = save_tiny("mixtral", tmp_path)
    with_prefix = {site: find_slot(open_model_folder(folder), site) for site in (Site("embed"), Site("mlp_write", 1))}
    rewrite_names(folder, lambda tensors: {name.removeprefix("model."): values for name, values in tensors.items()})
    for site, slot in with_prefix.items():
        found = find_slot(open_model_folder(folder), site).weights
        assert found == tuple(name.removeprefix("model.") for name in slot.weights)


@pytest.mark.parametrize(
    ("model_type", "name"),
    [
        ("llama", "model.layers.1.mlp.down_proj.bias"),
        ("qwen2", "model.layers.1.mlp.down_proj.bias"),
        ("opt", "model.decoder.layers.1.fc2.bias"),
    ],
)
def test_a_bias_in_the_files_that_the_model_does_not_use_is_none(model_type, name, save_tiny, tmp_path):
    folder = save_tiny(model_type, tmp_path)
    rewrite_names(folder, lambda tensors: {**tensors, name: np.zeros(32, np.float32)})
    assert find_slot(open_model_folder(folder), Site("mlp_write", 1)).bias is None


def test_the_bias_of_a_switch_that_the_config_leaves_out_is_found(save_tiny, tmp_path):
    folder = save_tiny("opt", tmp_path, bias=True)
    file = folder / "config.json"
    config = json.loads(file.read_text())
    assert config.pop("enable_bias")
    file.write_text(json.dumps(config))
    assert find_slot(open_model_folder(folder), Site("mlp_write", 1)).bias == "model.decoder.layers.1.fc2.bias"


@pytest.mark.parametrize("kind", ["embed", "residual", "attn_write"])
def test_a_result_with_inserted_modules_is_no_base(kind, save_tiny, tmp_path):
    folder = save_tiny("llama", tmp_path)
    file = folder / "config.json"
    config = {**json.loads(file.read_text()), "model_type": "alignez_llama", "alignez_edits": []}
    file.write_text(json.dumps(config))
    with pytest.raises(BadInputError, match="cannot be baked again: bake from its base"):
        find_slot(open_model_folder(folder), Site(kind, None if kind in LAYERLESS else 0))
