"""Every way of an edit into a checkpoint, in every architecture that has it, certified on both levels."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pytest
import torch

from alignez_bake.commands.bake import bake
from alignez_bake.commands.verify import verify
from alignez_bake.edit_plan import EditPlan
from alignez_bake.model_folder import open_model_folder
from tests.commands.small_bakes import certified, config_of, edits_at, index_of, routes, shifts_at, small_base

if TYPE_CHECKING:
    from pathlib import Path

    from alignez_bake.edit import Edit


class Ways(NamedTuple):
    """What becomes of two kinds of edits, and of the model type.

    Attributes:
        constant: a linear edit with a constant, at attention's writer.
        units: a relu edit at the MLP's writer that reads what enters the MLP.
        model_type: of the result.
    """

    constant: str
    units: str
    model_type: str


WAYS = {
    "llama": Ways("rehome", "rehome", "alignez_llama"),
    "qwen2": Ways("rehome", "rehome", "alignez_llama"),
    "mistral": Ways("rehome", "rehome", "alignez_llama"),
    "qwen3": Ways("rehome", "insert", "alignez_qwen3"),
    "gemma2": Ways("rehome", "insert", "alignez_gemma2"),
    "gemma3_text": Ways("rehome", "insert", "alignez_gemma3_text"),
    "olmo2": Ways("rehome", "insert", "alignez_olmo2"),
    "smollm3": Ways("rehome", "rehome", "alignez_smollm3"),
    "granite": Ways("rehome", "rehome", "alignez_granite"),
    "gpt_neox": Ways("rehome", "rehome", "alignez_gpt_neox"),
    "opt": Ways("rehome", "rehome", "alignez_opt"),
    "gpt2": Ways("fold", "rehome", "alignez_gpt2"),
    "phi3": Ways("insert", "insert", "alignez_phi3"),
    "mixtral": Ways("insert", "insert", "alignez_mixtral"),
    "qwen3_moe": Ways("rehome", "insert", "alignez_qwen3_moe"),
    "deepseek_v3": Ways("rehome", "insert", "alignez_deepseek_v3"),
    "gpt_oss": Ways("rehome", "insert", "alignez_gpt_oss"),
}


@pytest.mark.parametrize("model_type", WAYS)
def test_all_ways_at_once_in_every_architecture(model_type, tmp_path):
    base = small_base(model_type, tmp_path / "base")
    plan = EditPlan(
        (
            *edits_at(base, "attn_write", layers=[0], constant=True),
            *edits_at(base, "attn_write", layers=[1]),
            *edits_at(base, "mlp_write", layers=[0], reads="block", gate="relu"),
            *edits_at(base, "mlp_write", layers=[1], gate="relu", constant=True),
            *edits_at(base, "residual", layers=[0], gate="tanh", positions="last"),
        )
    )
    result = certified(base, plan, tmp_path / "out")
    ways = WAYS[model_type]
    assert routes(result) == {
        "attn_write.0": ways.constant,
        "attn_write.1": "fold",
        "mlp_write.0": ways.units,
        "mlp_write.1": "insert",
        "residual.0": "insert",
    }
    assert config_of(tmp_path / "out")["model_type"] == ways.model_type
    again = verify(tmp_path / "out", base, level="tensors")
    assert again.levels[0].to_json() == result.levels[0].to_json()


NATIVE = {
    "llama, biases": ("llama", [("attn_write", {"constant": True}), ("mlp_write", {"constant": True})]),
    "mistral, biases of a llama": ("mistral", [("attn_write", {"constant": True}), ("mlp_write", {"constant": True})]),
    "qwen2, biases of a llama": ("qwen2", [("mlp_write", {"constant": True})]),
    "llama, linear units": ("llama", [("mlp_write", {"reads": "block", "constant": True})]),
    "gpt2, linear units": ("gpt2", [("mlp_write", {"reads": "block"})]),
    "llama, units beside folds": (
        "llama",
        [
            ("mlp_write", {"reads": "block", "gate": "relu"}),
            ("mlp_write", {"reads": "input", "objective": "b", "seed": 1}),
            ("mlp_gate", {"reads": "input"}),
        ],
    ),
    "mixtral, experts": ("mixtral", [("mlp_write", {})]),
}


@pytest.mark.parametrize("case", NATIVE)
def test_what_is_carried_natively_needs_no_code(case, tmp_path):
    model_type, parts = NATIVE[case]
    base = small_base(model_type, tmp_path / "base")
    edits = [edit for kind, settings in parts for edit in edits_at(base, kind, **settings)]
    result = certified(base, EditPlan(tuple(edits)), tmp_path / "out", trust_remote_code=False)
    folds = {"mixtral, experts": {"mlp_write"}, "llama, units beside folds": {"mlp_gate"}}.get(case, set())
    assert routes(result) == {
        f"{kind}.{layer}": "fold" if kind in folds else "rehome" for kind, _ in parts for layer in range(2)
    }
    assert not list((tmp_path / "out").rglob("*.py"))
    assert "auto_map" not in config_of(tmp_path / "out")
    assert verify(tmp_path / "out", base, level="tensors").verdict == "passed"


@pytest.mark.parametrize(("model_type", "kind"), [("gemma2", "residual"), ("qwen3", "mlp_write")])
def test_constants_without_a_home_are_inserted(model_type, kind, tmp_path):
    base = small_base(model_type, tmp_path / "base")
    result = certified(base, EditPlan(tuple(shifts_at(base, kind))), tmp_path / "out")
    assert set(routes(result).values()) == {"insert"}


def test_the_residual_shift_of_an_untied_llama_is_a_bias_of_its_mlp(tmp_path):
    base = small_base("llama", tmp_path / "base", overrides={"tie_word_embeddings": False})
    result = certified(base, EditPlan(tuple(shifts_at(base, "residual"))), tmp_path / "out", trust_remote_code=False)
    assert set(routes(result).values()) == {"rehome"}
    assert config_of(tmp_path / "out")["mlp_bias"] is True
    assert open_model_folder(tmp_path / "out").tensors.read("model.layers.0.mlp.down_proj.bias").any()


def every_way(base: Path, **fields: object) -> list[Edit]:
    """A fold, a bias, hidden units and a module, of a llama or what becomes one."""
    return [
        *edits_at(base, "attn_write", layers=[0], **fields),
        *edits_at(base, "attn_write", layers=[1], constant=True, **fields),
        *edits_at(base, "mlp_write", layers=[0], reads="block", gate="relu", constant=True, **fields),
        *edits_at(base, "mlp_write", layers=[1], gate="relu", **fields),
    ]


EVERY_WAY = {"attn_write.0": "fold", "attn_write.1": "rehome", "mlp_write.0": "rehome", "mlp_write.1": "insert"}


@pytest.mark.parametrize("dtype", [None, "float32", "float16"])
def test_a_base_of_sixteen_bits_in_every_dtype(dtype, tmp_path):
    base = small_base("mistral", tmp_path / "base", dtype=torch.bfloat16)
    result = certified(base, EditPlan(tuple(every_way(base))), tmp_path / "out", dtype=dtype)
    assert routes(result) == EVERY_WAY
    config = config_of(tmp_path / "out")
    assert config["dtype"] == (dtype or "bfloat16")
    tensors = open_model_folder(tmp_path / "out").tensors
    file_dtype = {None: "BF16", "float32": "F32", "float16": "F16"}[dtype]
    inserted = {name for name in tensors.names() if "alignez_edits" in name}
    assert {tensors.entry(name).dtype for name in set(tensors.names()) - inserted} == {file_dtype}
    assert {tensors.entry(name).dtype for name in inserted} == {"F32"}
    assert verify(tmp_path / "out", base, level="tensors").verdict == "passed"


def test_what_is_run_again_from_disk_gives_the_same_figures(tmp_path):
    base = small_base("llama", tmp_path / "base")
    result = certified(base, EditPlan(tuple(every_way(base))), tmp_path / "out")
    assert verify(tmp_path / "out").certificate_json() == result.certificate_json()


@pytest.mark.parametrize("dials", [{"a": 0.5, "b": -0.4}, {"a": 0.0, "b": 1.5}])
def test_dials_turn_every_way(dials, tmp_path):
    base = small_base("llama", tmp_path / "base")
    edits = (*every_way(base, objective="a"), *every_way(base, objective="b", seed=1))
    result = certified(base, EditPlan(edits), tmp_path / "out", weights=dials)
    assert routes(result) == EVERY_WAY
    assert dict(result.lowering.plan.weights) == dials
    assert verify(tmp_path / "out", level="tensors").verdict == "passed"
    # They are turned from what the edits are, not from where they were: the file alone says what the result is.
    half = {name: weight / 2 for name, weight in dials.items()}
    other = bake(base, tmp_path / "out" / "alignez" / "edits.safetensors", tmp_path / "half", weights=half, **CODE)
    direct = bake(base, EditPlan(edits, weights=half), tmp_path / "direct", **CODE)
    assert (other.path / "model.safetensors").read_bytes() == (direct.path / "model.safetensors").read_bytes()
    assert config_of(other.path) == config_of(direct.path)


CODE = {"trust_remote_code": True}


def test_sharded_bases_get_what_is_new_where_it_belongs(tmp_path):
    base = small_base("llama", tmp_path / "base", max_shard_size="20KB")
    assert routes(certified(base, EditPlan(tuple(every_way(base))), tmp_path / "out")) == EVERY_WAY
    before, after = open_model_folder(base).tensors, open_model_folder(tmp_path / "out").tensors
    assert len(before.files) > 2
    assert after.files == before.files
    assert all(after.file_of(name) == before.file_of(name) for name in before.names())
    new = set(after.names()) - set(before.names())
    inserted = {name for name in new if "alignez_edits" in name}
    assert inserted == {f"model.layers.1.mlp.down_proj.alignez_edits.0.{name}" for name in ("left", "right")}
    assert {after.file_of(name) for name in inserted} == {before.files[-1]}
    assert len(new - inserted) == 2 * (4 + 3)  # the biases of attention and MLP in both layers
    for name in new - inserted:
        assert after.file_of(name) == before.file_of(f"{name.removesuffix('bias')}weight")
    index = index_of(tmp_path / "out")
    assert index["weight_map"] == {name: after.file_of(name) for name in after.names()}
    assert index["metadata"]["total_size"] == sum(after.read(name).nbytes for name in after.names())
