"""Parameter names to keys, on the spellings of released checkpoints."""

import time

import numpy as np
import pytest

from alignez_bake.errors import BadInputError
from alignez_bake.safetensors_io import open_folder, resolve_key, write_tensors

GPT2_RELEASED = {"wte.weight", "h.0.attn.bias", "h.0.attn.c_proj.weight", "h.0.mlp.c_proj.weight", "ln_f.bias"}
GPT2_SAVED = {"transformer.wte.weight", "transformer.h.0.attn.c_proj.weight", "transformer.h.0.mlp.c_proj.weight"}
LLAMA = {f"model.layers.{i}.{m}.weight" for i in range(12) for m in ("self_attn.o_proj", "mlp.down_proj")} | {
    "lm_head.weight"
}
PYTHIA = {
    "gpt_neox.layers.0.attention.bias",
    "gpt_neox.layers.0.attention.masked_bias",
    "gpt_neox.layers.0.attention.rotary_emb.inv_freq",
    "gpt_neox.layers.0.attention.dense.weight",
    "embed_out.weight",
}


@pytest.mark.parametrize(
    ("names", "parameter", "prefix", "key"),
    [
        (GPT2_SAVED, "transformer.h.0.attn.c_proj.weight", "transformer", "transformer.h.0.attn.c_proj.weight"),
        (GPT2_RELEASED, "transformer.h.0.attn.c_proj.weight", "transformer", "h.0.attn.c_proj.weight"),
        (GPT2_SAVED, "h.0.mlp.c_proj.weight", "transformer", "transformer.h.0.mlp.c_proj.weight"),
        (LLAMA, "model.layers.11.self_attn.o_proj.weight", "model", "model.layers.11.self_attn.o_proj.weight"),
        (LLAMA, "lm_head.weight", "model", "lm_head.weight"),
        (LLAMA, "layers.1.mlp.down_proj.weight", "model", "model.layers.1.mlp.down_proj.weight"),
        (PYTHIA, "gpt_neox.layers.0.attention.dense.weight", "gpt_neox", "gpt_neox.layers.0.attention.dense.weight"),
        (["a.b"], "a.b", "", "a.b"),
    ],
)
def test_finds(names, parameter, prefix, key):
    assert resolve_key(names, parameter, prefix) == key


def test_takes_a_folder(tmp_path):
    write_tensors(tmp_path / "model.safetensors", {"h.0.w": np.ones(1)})
    assert resolve_key(open_folder(tmp_path), "transformer.h.0.w", "transformer") == "h.0.w"


def test_nothing_found_names_what_was_looked_for_and_the_nearest():
    with pytest.raises(BadInputError) as caught:
        resolve_key(LLAMA, "model.layers.3.self_attn.out_proj.weight", "model")
    message = str(caught.value)
    for word in (
        "'model.layers.3.self_attn.out_proj.weight'",
        "'layers.3.self_attn.out_proj.weight'",
        "'model.model.layers.3.self_attn.out_proj.weight'",
        "nearest: 'model.layers.3.self_attn.o_proj.weight'",
    ):
        assert word in message


def test_nothing_similar():
    with pytest.raises(BadInputError, match="no similar key"):
        resolve_key({"x"}, "model.layers.3.self_attn.o_proj.weight", "model")


@pytest.mark.parametrize(
    ("parameter", "prefix"),
    [("lm_head.weigh", "model"), ("odel.layers.0.mlp.down_proj.weight", "model"), ("lm_head", "")],
)
def test_never_guesses(parameter, prefix):
    with pytest.raises(BadInputError, match="not in the file"):
        resolve_key(LLAMA, parameter, prefix)


def test_a_prefix_is_a_whole_component():
    with pytest.raises(BadInputError):
        resolve_key({"_x.weight"}, "model_x.weight", "model")


def test_without_a_prefix_only_the_name_itself():
    with pytest.raises(BadInputError):
        resolve_key({"model.a"}, "a", "")


def test_two_matches_are_ambiguous():
    with pytest.raises(BadInputError, match=r"ambiguous.*'transformer.h.0.w', 'h.0.w'"):
        resolve_key({"h.0.w", "transformer.h.0.w"}, "transformer.h.0.w", "transformer")


def test_the_error_comes_quickly_for_large_files_and_still_finds_the_nearest():
    names = {
        f"model.layers.{i}.experts.{j}.{m}.weight" for i in range(60) for j in range(256) for m in ("gate", "down")
    }
    names.add("model.layers.59.self_attn.o_proj.weight")
    start = time.perf_counter()
    with pytest.raises(BadInputError, match=r"nearest: 'model.layers.59.self_attn.o_proj.weight'"):
        resolve_key(names, "model.layers.60.self_attn.o_proj.weight", "model")
    assert time.perf_counter() - start < 5
