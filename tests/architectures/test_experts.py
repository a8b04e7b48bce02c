"""Mixtures of experts against formulas of their own, from the files alone: which tensors, which axis, which weights."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from alignez_bake.architectures.architecture import architecture_for
from alignez_bake.certificate.expert_weights import ROUTERS
from alignez_bake.errors import BadInputError
from alignez_bake.site import Site
from tests.architectures.test_data_files import recorded
from tests.running import load, relative

SQUARE = {
    "mixtral": {"intermediate_size": 32},
    "qwen3_moe": {"moe_intermediate_size": 48},
    "deepseek_v3": {"moe_intermediate_size": 48},
    "gpt_oss": {"intermediate_size": 48},
}
"""Experts whose last map is as wide as it is high, so that no shape tells one axis from the other."""
CASES = [
    ("mixtral", {}),
    ("qwen3_moe", {"norm_topk_prob": False}),
    ("qwen3_moe", {"norm_topk_prob": True}),
    ("deepseek_v3", {"norm_topk_prob": True}),
    ("deepseek_v3", {"norm_topk_prob": False, "routed_scaling_factor": 0.7, "n_shared_experts": 1}),
    ("gpt_oss", {}),
]


def gated(read, tensors, path, names=("gate_proj", "up_proj")):
    gate, up = (read @ tensors[f"{path}.{name}.weight"].T for name in names)
    return functional.silu(gate) * up


def scattered(chosen, weights, count):
    return torch.zeros(*chosen.shape[:-1], count, dtype=weights.dtype).scatter(-1, chosen, weights)


def mixtral(read, tensors, layer, config):
    block, count = f"{layer}.block_sparse_moe", config["num_local_experts"]
    chosen = (read @ tensors[f"{block}.gate.weight"].T).float().softmax(-1).topk(config["num_experts_per_tok"])
    weights = chosen.values / chosen.values.sum(-1, keepdim=True)
    inner = [gated(read, tensors, f"{block}.experts.{index}", ("w1", "w3")) for index in range(count)]
    return inner, scattered(chosen.indices, weights, count)


def qwen3_moe(read, tensors, layer, config):
    block, count = f"{layer}.mlp", config["num_local_experts"]
    chosen = (read @ tensors[f"{block}.gate.weight"].T).float().softmax(-1).topk(config["num_experts_per_tok"])
    total = chosen.values.sum(-1, keepdim=True) if config["norm_topk_prob"] else 1.0
    inner = [gated(read, tensors, f"{block}.experts.{index}") for index in range(count)]
    return inner, scattered(chosen.indices, chosen.values / total, count)


def deepseek_v3(read, tensors, layer, config):
    """The best experts of the best groups, a group being as good as its two best experts together."""
    block, count, groups = f"{layer}.mlp", config["n_routed_experts"], config["n_group"]
    scores = (read.float() @ tensors[f"{block}.gate.weight"].float().T).sigmoid()
    ranked = scores + tensors[f"{block}.gate.e_score_correction_bias"]
    by_group = ranked.unflatten(-1, (groups, -1))
    best = by_group.topk(2).values.sum(-1).topk(config["topk_group"]).indices
    kept = torch.zeros(by_group.shape[:-1], dtype=torch.bool).scatter(-1, best, True)
    ranked = by_group.masked_fill(~kept[..., None], -torch.inf).flatten(-2)
    chosen = ranked.topk(config["num_experts_per_tok"]).indices
    weights = scores.gather(-1, chosen)
    if config["norm_topk_prob"]:
        weights = weights / weights.sum(-1, keepdim=True)
    inner = [gated(read, tensors, f"{block}.experts.{index}") for index in range(count)]
    return inner, scattered(chosen, weights * config["routed_scaling_factor"], count)


def gpt_oss(read, tensors, layer, config):
    block, count, limit = f"{layer}.mlp", config["num_local_experts"], config["swiglu_limit"]
    logits = read @ tensors[f"{block}.router.weight"].T + tensors[f"{block}.router.bias"]
    chosen = logits.topk(config["num_experts_per_tok"])
    inner = []
    for index in range(count):
        both = read @ tensors[f"{block}.experts.gate_up_proj"][index]
        both = both + tensors[f"{block}.experts.gate_up_proj_bias"][index]
        gate, up = both[..., ::2].clamp(max=limit), both[..., 1::2].clamp(-limit, limit)
        inner.append((up + 1) * gate * torch.sigmoid(gate * config["swiglu_alpha"]))
    return inner, scattered(chosen.indices, chosen.values.softmax(-1), count)


SEED = 2
"""With which every expert is chosen by some token."""
REFERENCES = {"mixtral": mixtral, "qwen3_moe": qwen3_moe, "deepseek_v3": deepseek_v3, "gpt_oss": gpt_oss}


def last_maps(linear, layer, tensors, count):
    """W_e and b_e of the routed experts as the data file names them, each as it is stored."""
    name = f"{layer}.{linear.experts}"
    if "{expert}" in name:
        assert f"{name.format(expert=count)}.weight" not in tensors
        assert not any(f"{name.format(expert=index)}.bias" in tensors for index in range(count))
        return [(tensors[f"{name.format(expert=index)}.weight"], 0.0) for index in range(count)]
    assert tensors[name].shape[0] == count
    return list(zip(tensors[name], tensors[f"{name}_bias"], strict=True))


def mapped(inner, weight, layout):
    return inner @ (weight.T if layout == "out_in" else weight)


def flat(values):
    return values.reshape(-1, values.shape[-1])


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize(("model_type", "overrides"), CASES)
def test_a_mixture_is_the_weighed_sum_of_the_maps_that_its_files_name(
    model_type, overrides, layer, tmp_path, save_tiny
):
    """y = Σ_e p_e (W_e z_e + b_e), with shared experts added; on the other axis it is something else."""
    settings = {**SQUARE[model_type], **overrides}
    folder = save_tiny(model_type, tmp_path, seed=SEED, dtype=torch.float64, overrides=settings)
    tensors, model = load_file(folder / "model.safetensors"), load(folder, torch.float64)
    config = json.loads(model.config.to_json_string(use_diff=False))
    architecture = architecture_for(config)
    path, linear = architecture.layer_path(layer), architecture.linear_site("mlp_write", layer)
    module, block = (
        architecture.module_path(Site("mlp_write", layer)),
        architecture.block_path(Site("mlp_write", layer)),
    )
    calls, _ = recorded(model, dict.fromkeys((module, block)))
    ((read, of_block),), ((_, of_module),) = calls[block], calls[module]
    assert torch.equal(flat(of_block), flat(of_module))

    inner, weights = REFERENCES[model_type](read, tensors, path, config)
    count = len(inner)
    assert {config[entry] for entry in linear.expert_count if entry in config} == {count}
    assert (weights.sum(dim=(0, 1)) > 0).all()  # every expert is seen
    sums = weights.sum(-1)
    sum_to_one = torch.allclose(sums, torch.ones_like(sums))
    assert sum_to_one == (model_type != "deepseek_v3" and overrides.get("norm_topk_prob", True))
    assert sum_to_one or linear.bias == "never"  # a constant would be weighed

    def expected(layout):
        total = 0.0
        for index, (weight, bias) in enumerate(last_maps(linear, path, tensors, count)):
            total = total + weights[..., index, None] * (mapped(inner[index], weight, layout) + bias)
        return total

    shared = 0.0
    if linear.shared_experts is not None:
        weight = tensors[f"{path}.{linear.shared_experts}.weight"]
        shared = gated(read, tensors, f"{path}.{linear.shared_experts}".rpartition(".")[0]) @ weight.T
        assert float(torch.linalg.vector_norm(shared)) > 0.1 * float(torch.linalg.vector_norm(of_block))
    other = "in_out" if linear.layout == "out_in" else "out_in"
    assert relative(of_block, expected(linear.layout) + shared) < 1e-7  # routers compute in float32
    assert relative(of_block, expected(other) + shared) > 0.1


@pytest.mark.parametrize(("model_type", "overrides"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_routers_formula_gives_its_own_bits(model_type, overrides, dtype, tiny_model):
    model = tiny_model(model_type, bias=False, dtype=dtype, overrides=overrides)
    routers = architecture_for(json.loads(model.config.to_json_string(use_diff=False))).router_paths(2)
    assert len(routers) == 2
    seen = []
    for path, routing in routers.items():
        model.get_submodule(path).register_forward_hook(
            lambda module, args, output, routing=routing: seen.append((routing, module, args[0], output))
        )
    with torch.no_grad():
        model(torch.arange(3, 60)[None], use_cache=False)
    assert len(seen) == 2
    for routing, module, hidden, (_, weights, chosen) in seen:
        found = ROUTERS[routing].weights(module, hidden, chosen)
        assert torch.equal(found.to(weights.dtype), weights)
        # The scores are what the choice is made by, within groups where there are any.
        scores = ROUTERS[routing].scores(module, hidden)
        assert scores.shape == (57, module.num_experts)
        groups = getattr(module, "num_group", 1)
        taken = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, chosen, True).unflatten(-1, (groups, -1))
        ranked = scores.unflatten(-1, (groups, -1))
        worst_taken = ranked.masked_fill(~taken, torch.inf).min(dim=-1).values
        best_left = ranked.masked_fill(taken, -torch.inf).max(dim=-1).values
        some = taken.any(dim=-1)
        assert (worst_taken[some] >= best_left[some]).all()


# Which layers have experts.

MIXED = [
    ("qwen3_moe", {"mlp_only_layers": [2]}, [2]),
    ("qwen3_moe", {"mlp_only_layers": None}, []),
    ("qwen3_moe", {"decoder_sparse_step": 2}, [0, 2]),
    ("qwen3_moe", {"decoder_sparse_step": 3, "mlp_only_layers": [2, 3]}, [0, 1, 2, 3]),
    ("qwen3_moe", {}, []),
    ("deepseek_v3", {"first_k_dense_replace": 1}, [0]),
    ("deepseek_v3", {"first_k_dense_replace": 0}, []),
    ("deepseek_v3", {"first_k_dense_replace": 9}, [0, 1, 2, 3]),
]


@pytest.mark.parametrize(("model_type", "overrides", "dense"), MIXED)
def test_layers_have_experts_where_the_config_says(model_type, overrides, dense, tiny_model):
    model = tiny_model(model_type, bias=False, overrides={**overrides, "num_hidden_layers": 4})
    architecture = architecture_for(json.loads(model.config.to_json_string(use_diff=False)))
    for layer in range(4):
        path = architecture.layer_path(layer)
        sparse = hasattr(model.get_submodule(f"{path}.mlp"), "experts")
        assert sparse == (layer not in dense)
        linear = architecture.linear_site("mlp_write", layer)
        assert (linear.experts is not None) == sparse
        assert architecture.legal_reads(layer)["mlp_write"] == (
            ("output", "block") if sparse else ("output", "input", "block")
        )
        if sparse:
            with pytest.raises(BadInputError, match=rf"no site 'mlp_gate' in layer {layer}: every expert has a gate"):
                architecture.linear_site("mlp_gate", layer)
        else:
            for kind in ("mlp_write", "mlp_gate"):
                assert isinstance(model.get_submodule(architecture.module_path(Site(kind, layer))), torch.nn.Linear)
    assert len(architecture.router_paths(4)) == 4 - len(dense)


@pytest.mark.parametrize(("model_type", "dense"), [("qwen3_moe", []), ("deepseek_v3", [0, 1, 2]), ("mixtral", [])])
def test_a_config_that_does_not_say_is_read_as_its_class_does(model_type, dense):
    architecture = architecture_for({"model_type": model_type})
    assert [layer for layer in range(6) if layer in architecture.dense_layers] == dense


@pytest.mark.parametrize(
    "entries",
    [
        {"model_type": "deepseek_v3", "first_k_dense_replace": None},
        {"model_type": "deepseek_v3", "first_k_dense_replace": -1},
        {"model_type": "deepseek_v3", "first_k_dense_replace": True},
        {"model_type": "qwen3_moe", "decoder_sparse_step": 0},
        {"model_type": "qwen3_moe", "decoder_sparse_step": "2"},
        {"model_type": "qwen3_moe", "mlp_only_layers": 3},
        {"model_type": "qwen3_moe", "mlp_only_layers": ["3"]},
        {"model_type": "qwen3_moe", "mlp_only_layers": [-1]},
    ],
)
def test_entries_that_say_nothing_of_layers_are_refused(entries):
    with pytest.raises(BadInputError, match=rf"config.json has {list(entries)[1]} = "):
        architecture_for(entries)
