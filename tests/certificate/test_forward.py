"""Level `forward`: right bakes pass on running models, wrong ones fail, edits that hardly move are inconclusive."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from alignez_bake.certificate.forward import _Found, _judge, _Reference, certify_forward
from alignez_bake.certificate.forward_passes import Outputs
from alignez_bake.certificate.routing import Generated
from alignez_bake.commands.bake import bake
from alignez_bake.edit import Edit
from alignez_bake.edit_plan import EditPlan
from alignez_bake.language_model.loading import load_model
from alignez_bake.model_folder import open_model_folder
from alignez_bake.site import Site
from tests.baking import command, lowered, plan_for, replace_tensors

# Half of the positions are for greedy tokens: 32 of them, after prompts of at most 32.
POSITIONS = {"max_position_embeddings": 64}
OPT_350M = {**POSITIONS, "do_layer_norm_before": False, "word_embed_proj_dim": 24}


def make(folder, save_tiny, model_type, dtype, overrides=POSITIONS, **settings):
    """A base, its bake and the plan."""
    base = save_tiny(model_type, folder / "base", dtype=dtype, overrides=overrides)
    plan = plan_for(base, ("attn_write", "mlp_write"), scale=0.3, **settings)
    return base, bake(base, plan, folder / "out").path, plan


@pytest.fixture(scope="module")
def llama(tmp_path_factory, save_tiny):
    return make(tmp_path_factory.mktemp("llama"), save_tiny, "llama", torch.float32)


def certified(base, result, plan):
    folder = open_model_folder(base)
    return certify_forward(folder, lowered(folder, plan), load_model(open_model_folder(result)))


@pytest.mark.parametrize(
    ("model_type", "dtype", "overrides"),
    [
        ("gpt2", torch.float32, {"n_positions": 64}),  # Conv1D, learned positions, biases
        ("gemma2", torch.bfloat16, {**POSITIONS, "sliding_window": 8}),  # norms after the writers
        ("opt", torch.float32, OPT_350M),  # no final norm
    ],
)
def test_right_bakes_pass(model_type, dtype, overrides, tmp_path, save_tiny):
    base, out, plan = make(tmp_path, save_tiny, model_type, dtype, overrides, constant=model_type == "gpt2")
    certificate = certified(base, out, plan)
    assert certificate.verdict == "passed", certificate.reasons
    assert certificate.dtype == str(dtype).removeprefix("torch.")
    assert [entry.batch_size for entry in certificate.comparisons] == [1, 8]
    for entry in certificate.comparisons:
        assert min(entry.residual_moved, entry.logits_moved) > 100 * 1e-5
        if dtype == torch.float32:
            assert max(entry.residual_error, entry.logits_error) < 1e-5 == entry.residual_bound
        else:
            assert 0 < entry.residual_error <= entry.residual_bound < 0.1


def test_what_a_certificate_says(llama):
    certificate = certified(*llama)
    assert certificate.verdict == "passed", certificate.reasons
    figures = json.loads(json.dumps(certificate.to_json(), allow_nan=False))
    assert figures["routing"] is None
    assert figures["prompts"]["count"] == 32
    assert (figures["prompts"]["shortest"], figures["prompts"]["longest"]) == (16, 32)
    assert "neutral texts" in figures["prompts"]["source"]
    assert figures["greedy"] == {"tokens": 32, "equal_share": {"batch 1": 1.0, "batch 8": 1.0}}
    assert figures["worst_site"]["error"] <= figures["worst_site"]["tolerance"] == 1e-6
    assert figures["last_only_difference"] > 1e-3


def test_one_layer_left_out_fails(llama, tmp_path):
    base, out, plan = llama
    mutant = shutil.copytree(out, tmp_path / "mutant")
    original, left_out = open_model_folder(base).tensors, "model.layers.1.self_attn.o_proj.weight"
    replace_tensors(mutant, lambda name, _values: original.read(name) if name == left_out else None)
    certificate = certified(base, mutant, plan)
    assert certificate.verdict == "failed"
    text = " ".join(certificate.reasons)
    for part in (
        "batch 1: residual differ",
        "batch 8: logits differ",
        "greedy tokens differ",
        "layers.1.self_attn.o_proj",
    ):
        assert part in text


def test_an_edit_that_hardly_moves_the_model_is_inconclusive(llama, tmp_path, capsys):
    base, _, plan = llama
    out = tmp_path / "out"
    result = bake(base, plan.scaled(3e-4), out, verify="forward")
    assert [level.verdict for level in result.levels] == ["passed", "inconclusive"]
    assert result.path == tmp_path / "out.failed"
    assert "moves the model by" in result.levels[1].reasons[0]
    assert command("verify", result.path) == 1
    assert "inconclusive" in capsys.readouterr().err.splitlines()[-1]


def test_a_base_without_a_tokenizer_is_certified_on_random_ids(llama, tmp_path):
    base = shutil.copytree(llama[0], tmp_path / "base")
    for file in base.glob("token*"):
        file.unlink()
    result = bake(base, llama[2], tmp_path / "out", verify="forward")
    assert result.verdict == "passed"
    assert "random token ids" in result.levels[1].prompts["source"]


def test_a_mixture_of_experts_is_compared_block_by_block(tmp_path, save_tiny):
    base, out, plan = make(tmp_path, save_tiny, "mixtral", torch.float32)
    certificate = certified(base, out, plan)
    assert certificate.verdict == "passed", certificate.reasons
    mutant = shutil.copytree(out, tmp_path / "mutant")
    original, left_out = open_model_folder(base).tensors, "model.layers.0.block_sparse_moe.experts.2.w2.weight"
    replace_tensors(mutant, lambda name, _values: original.read(name) if name == left_out else None)
    certificate = certified(base, mutant, plan)
    assert certificate.verdict == "failed"
    assert any(reason.startswith("model.layers.0.mlp: given equal input") for reason in certificate.reasons)


def test_a_writer_that_got_residual_edits_is_not_compared_by_its_own_edits_alone(tmp_path, save_tiny):
    """Its output is the hooked one and the shift as well, which the hooks add behind the layer."""
    base = save_tiny("gpt2", tmp_path / "base", overrides={"n_positions": 64})
    plan = plan_for(base, ("mlp_write",), scale=0.3)
    shift = Edit(Site("residual", 1), bias=np.random.default_rng(0).normal(size=32))
    plan = replace(plan, edits=(shift, *plan.edits))
    result = bake(base, plan, tmp_path / "out", verify="forward")
    assert result.verdict == "passed", result.levels[1].reasons
    assert result.levels[1].worst_site[0] == "transformer.h.0.mlp.c_proj"
    # What is not compared by itself is still seen.
    name = "transformer.h.1.mlp.c_proj.bias"
    original = open_model_folder(base).tensors
    replace_tensors(tmp_path / "out", lambda key, _values: original.read(key) if key == name else None)
    assert certified(base, tmp_path / "out", plan).verdict == "failed"


def test_edits_of_embedding_and_stream_are_certified_end_to_end(tmp_path, save_tiny):
    base = save_tiny("llama", tmp_path / "base", overrides=POSITIONS)
    directions = np.linalg.qr(np.random.default_rng(0).normal(size=(32, 2)))[0]
    sites = [Site("embed"), *(Site(kind, layer) for layer in (0, 1) for kind in ("attn_write", "residual"))]
    plan = EditPlan(
        tuple(Edit(site, left=-directions, right=directions) for site in sites),
        base=open_model_folder(base).fingerprint,
    )
    result = bake(base, plan, tmp_path / "out", verify="forward")
    assert result.verdict == "passed", result.levels
    name = "model.embed_tokens.weight"
    original = open_model_folder(base).tensors
    replace_tensors(tmp_path / "out", lambda key, _values: original.read(key) if key == name else None)
    assert certified(base, tmp_path / "out", plan).verdict == "failed"


# The judgement alone, on made-up outputs.
def outputs(shift=0.0):
    values = torch.linspace(1, 2, 40).reshape(10, 4)
    return {size: Outputs(values + shift, values - shift) for size in (1, 8)}


def judged(dtype, *, found=0.0, hooked=0.0, moved=0.5, greedy=(1, 2), worst=None, same_keys=True):
    tokens = {size: Generated([[1, 2]]) for size in (1, 8)}
    return _judge(
        _Found(outputs(found), {1: Generated([list(greedy)]), 8: Generated([[1, 2]])}, worst, same_keys),
        _Reference(outputs(hooked), outputs(), outputs(moved), tokens, {}, 0.1),
        dtype,
        prompts={},
        new_tokens=2,
    )


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "passed"),
        ({"found": 1e-6}, "passed"),
        ({"found": 1e-4}, "failed"),
        ({"found": float("nan")}, "failed"),
        ({"moved": 1e-4}, "inconclusive"),
        ({"moved": 1e-4, "found": 1e-4}, "failed"),
        ({"greedy": (1, 3)}, "failed"),
        ({"same_keys": False}, "failed"),
        ({"worst": ("module", 1e-6, 1e-6)}, "passed"),
        ({"worst": ("module", 2e-6, 1e-6)}, "failed"),
    ],
)
def test_judgement_in_fp32(changes, verdict):
    certificate = judged(torch.float32, **changes)
    assert certificate.verdict == verdict
    assert bool(certificate.reasons) == (verdict != "passed")
    json.dumps(certificate.to_json(), allow_nan=False)


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"hooked": 0.01, "found": 0.012}, "passed"),  # within 1.25 times of what the hooks lose
        ({"hooked": 0.01, "found": 0.013}, "failed"),
        ({"hooked": 0.01, "greedy": (1, 3)}, "passed"),  # reported, not required
        ({"hooked": 0.1, "found": 0.1, "moved": 0.09}, "inconclusive"),  # the dtype's noise hides the edit
        ({"hooked": float("inf")}, "inconclusive"),
    ],
)
def test_judgement_in_bf16(changes, verdict):
    certificate = judged(torch.bfloat16, **changes)
    assert certificate.verdict == verdict
    assert certificate.greedy_equal == {1: float("greedy" not in changes), 8: 1.0}
    json.dumps(certificate.to_json(), allow_nan=False)
