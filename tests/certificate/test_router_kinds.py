"""Every kind of router is replayed by its own formula, and mixtures of every kind are certified."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from alignez_bake.certificate.forward import certify_forward
from alignez_bake.certificate.forward_passes import record_outputs
from alignez_bake.certificate.routing import RouterCalls, count_flips, watched_routers
from alignez_bake.commands.bake import bake
from alignez_bake.language_model.loading import load_model
from alignez_bake.model_folder import open_model_folder
from tests.baking import lowered, plan_for, replace_tensors

# Half of the positions are for greedy tokens: 32 of them, after prompts of at most 32.
SHORT = {"max_position_embeddings": 64}
PROMPTS = tuple(tuple(range(3 + 5 * row, 3 + 5 * row + length)) for row, length in enumerate((5, 9, 2, 12, 7)))
CASES = [
    ("qwen3_moe", {}),
    ("qwen3_moe", {"norm_topk_prob": True, "mlp_only_layers": [0]}),
    ("deepseek_v3", {}),
    ("deepseek_v3", {"norm_topk_prob": False, "first_k_dense_replace": 1}),
    ("gpt_oss", {}),
]


def opened(base, dtype=torch.float32):
    folder = open_model_folder(base)
    return folder, load_model(folder, dtype=dtype).model


def record(model, folder, replay=None):
    return record_outputs(model, folder.architecture, PROMPTS, 2, lambda _count: None, replay=replay)


def certified(base, result, plan):
    folder = open_model_folder(base)
    return certify_forward(folder, lowered(folder, plan), load_model(open_model_folder(result)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("model_type", "overrides"), CASES)
def test_to_replay_a_models_own_choice_changes_no_bit(model_type, overrides, dtype, tmp_path, save_tiny):
    folder, model = opened(save_tiny(model_type, tmp_path, dtype=dtype, overrides=overrides), dtype)
    free = record(model, folder)
    forced = record(model, folder, free.routing)
    assert torch.equal(free.residual, forced.residual)
    assert torch.equal(free.logits, forced.logits)
    assert torch.equal(free.router_logits, forced.router_logits)
    routers = len(folder.architecture.router_paths(2))
    assert routers == (1 if "mlp_only_layers" in overrides or "first_k_dense_replace" in overrides else 2)
    assert count_flips(forced.routing, free.routing) == (routers * sum(len(prompt) for prompt in PROMPTS), 0.0)


def softmax(logits, chosen, config):
    weights = logits.softmax(-1).gather(-1, chosen)
    return weights / weights.sum(-1, keepdim=True) if config.norm_topk_prob else weights


def sigmoid(logits, chosen, config):
    weights = logits.sigmoid().gather(-1, chosen)
    total = weights.sum(-1, keepdim=True) if config.norm_topk_prob else 1.0
    return weights / total * config.routed_scaling_factor


def softmax_of_chosen(logits, chosen, _config):
    return logits.gather(-1, chosen).softmax(-1)


FORMULAS = {"qwen3_moe": softmax, "deepseek_v3": sigmoid, "gpt_oss": softmax_of_chosen}


@pytest.mark.parametrize(("model_type", "overrides"), CASES)
def test_experts_get_the_given_choice_with_weights_of_the_runs_own_router(model_type, overrides, tmp_path, save_tiny):
    folder, model = opened(save_tiny(model_type, tmp_path, overrides=overrides))
    routers = folder.architecture.router_paths(2)
    ids = torch.tensor([PROMPTS[3]])
    generator = torch.Generator().manual_seed(0)
    count = model.get_submodule(next(iter(routers))).num_experts
    order = torch.rand(ids.numel(), count, generator=generator).argsort(dim=-1)[:, : model.config.num_experts_per_tok]
    given, seen = RouterCalls({}, {path: [order] for path in routers}), []
    for path in routers:
        block = model.get_submodule(path.rpartition(".")[0])
        block.experts.register_forward_pre_hook(lambda _module, args, path=path: seen.append((path, args)))
    with torch.no_grad(), watched_routers(model, routers, given) as calls:
        model(ids, use_cache=False)
    assert [path for path, _ in seen] == list(routers)
    for path, (hidden, chosen, weights) in seen:
        assert torch.equal(chosen, order)
        router = model.get_submodule(path)
        logits = torch.nn.functional.linear(hidden, router.weight, getattr(router, "bias", None))
        assert torch.allclose(weights, FORMULAS[model_type](logits, order, model.config), rtol=1e-5)
        assert not torch.equal(calls.chosen[path][0].sort(dim=-1).values, order.sort(dim=-1).values)


@pytest.mark.parametrize(("model_type", "overrides"), [CASES[1], CASES[3], CASES[4]])
def test_bakes_of_every_kind_are_certified(model_type, overrides, tmp_path, save_tiny):
    base = save_tiny(model_type, tmp_path / "base", overrides={**SHORT, **overrides})
    plan = plan_for(base, ("attn_write", "mlp_write"), scale=0.3)
    result = bake(base, plan, tmp_path / "out", verify="forward")
    assert result.verdict == "passed", [level.reasons for level in result.levels]
    # One expert without the edit is seen at the site, whose block is run by itself.
    original, mutant = open_model_folder(base).tensors, shutil.copytree(tmp_path / "out", tmp_path / "mutant")

    def unedited(name, values):
        if name == "model.layers.1.mlp.experts.2.down_proj.weight":
            return original.read(name)
        if name == "model.layers.1.mlp.experts.down_proj":
            changed = np.array(values)
            changed[2] = original.read(name)[2]
            return changed
        return None

    replace_tensors(mutant, unedited)
    certificate = certified(base, mutant, plan)
    assert certificate.verdict == "failed"
    assert any(reason.startswith("model.layers.1.mlp: given equal input") for reason in certificate.reasons)


def test_a_changed_correction_of_the_choice_shows_in_the_scores(tmp_path, save_tiny):
    """It changes no logit and no weight of a given choice, but which experts are chosen."""
    base = save_tiny("deepseek_v3", tmp_path / "base", overrides=SHORT)
    plan = plan_for(base, ("attn_write",), scale=0.3)
    out = bake(base, plan, tmp_path / "out").path
    name = "model.layers.1.mlp.gate.e_score_correction_bias"
    replace_tensors(out, lambda key, values: values[::-1].copy() if key == name else None)
    certificate = certified(base, out, plan)
    assert certificate.verdict == "failed"
    assert max(entry.residual_error for entry in certificate.comparisons) < 1e-5
    reasons = [reason.partition(" differ")[0] for reason in certificate.reasons if "logits" in reason]
    assert reasons == ["batch 1: routers' logits", "batch 8: routers' logits"]
    assert certificate.routing.comparisons[0].flipped_share > 0.05
