"""Mixtures that differ from mixtral: shared and stacked experts, weights that do not sum to one, layers without any."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from alignez_bake.commands.bake import bake
from alignez_bake.edit import Edit
from alignez_bake.edit_file import write_edits
from alignez_bake.edit_plan import EditPlan
from alignez_bake.errors import BadInputError
from alignez_bake.lowering.fold import EditedTensors
from alignez_bake.lowering.home import constant_has_home
from alignez_bake.lowering.slot import find_slot
from alignez_bake.model_folder import open_model_folder
from alignez_bake.site import Site
from tests.baking import lowered, plan_for, replace_tensors, rewrite_names
from tests.lowering.folding import FP32_END, MARGIN, assert_folds, errors, fold_into, refusal, routes
from tests.random_edits import edit_for_slot, random_edit
from tests.running import load

# Square maps, so that no shape tells one axis from the other.
SQUARE = {
    "qwen3_moe": {"moe_intermediate_size": 48},
    "deepseek_v3": {"moe_intermediate_size": 48, "n_shared_experts": 1},
    "gpt_oss": {"intermediate_size": 48},
}
SITES = (Site("mlp_write", 0), Site("mlp_write", 1))


@pytest.fixture
def base(request, save_tiny, tmp_path):
    """Of the type that the test is given; 16 tokens see every expert."""
    model_type = request.param
    return open_model_folder(save_tiny(model_type, tmp_path / "base", overrides=SQUARE[model_type]))


def of_types(*model_types):
    return pytest.mark.parametrize("base", model_types, indirect=True)


def plan_of(base, **settings):
    return EditPlan(tuple(edit_for_slot(find_slot(base, site), seed=1, **settings) for site in SITES))


def rewrite_config(base, **entries):
    file = base.path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))
    return open_model_folder(base.path)


KEYS = {
    "qwen3_moe": [f"model.layers.1.mlp.experts.{index}.down_proj.weight" for index in range(4)],
    "deepseek_v3": [
        *(f"model.layers.1.mlp.experts.{index}.down_proj.weight" for index in range(8)),
        "model.layers.1.mlp.shared_experts.down_proj.weight",
    ],
    "gpt_oss": ["model.layers.1.mlp.experts.down_proj"],
}


@of_types(*KEYS)
def test_a_slot_is_the_last_map_of_every_expert_as_the_files_name_them(base):
    slot = find_slot(base, SITES[1])
    assert slot.kind == "experts"
    assert list(slot.weights) == KEYS[slot.model_type]
    assert slot.bias == ("model.layers.1.mlp.experts.down_proj_bias" if slot.model_type == "gpt_oss" else None)
    assert (slot.d_out, slot.d_in, slot.obstacle) == (48, 48, "")


@of_types(*KEYS)
def test_every_expert_gets_the_edit_and_nothing_else(base, tmp_path):
    """In gpt_oss the biases too, which the edit reads."""
    plan = plan_of(base)
    lowering = assert_folds(base, plan, tmp_path / "out")
    out = open_model_folder(tmp_path / "out").tensors
    changed = {name for name in base.tensors if not np.array_equal(base.tensors.read(name), out.read(name))}
    assert changed == set(EditedTensors(lowering.folds, base.tensors).names)
    slots = [find_slot(base, site) for site in SITES]
    assert changed == {name for slot in slots for name in (*slot.weights, slot.bias) if name is not None}


@pytest.mark.parametrize(
    ("model_type", "overrides"),
    [
        ("qwen3_moe", {"norm_topk_prob": True}),
        ("deepseek_v3", {"norm_topk_prob": False, "routed_scaling_factor": 3.0}),
        ("deepseek_v3", {"n_shared_experts": 3, "q_lora_rank": None}),
        ("gpt_oss", {"num_experts_per_tok": 1}),
    ],
)
def test_the_fold_is_exact_whatever_weights_the_router_gives(model_type, overrides, tmp_path, save_tiny):
    base = open_model_folder(save_tiny(model_type, tmp_path / "base", overrides=overrides))
    assert_folds(base, plan_of(base), tmp_path / "out")


def steps_of(base, plan, out):
    """What each edited tensor gained."""
    edited = EditedTensors(fold_into(base, plan, out).folds, base.tensors)
    found = {name: edited.compute(name) for name in edited.names}
    return {name: tensor.exact - tensor.base for name, tensor in found.items()}


def one_expert_left_out(name, step):
    if step.ndim == 3:
        return step * (np.arange(len(step)) != 2)[:, None, None]
    return 0.0 * step if "experts.2." in name else step


MUTATIONS = {
    "one expert left out": one_expert_left_out,
    "shared experts left out": lambda name, step: 0.0 * step if "shared_experts" in name else step,
    "routed experts left out": lambda name, step: step if "shared_experts" in name else 0.0 * step,
    "biases left out": lambda name, step: 0.0 * step if name.endswith("_bias") else step,
    "wrong axis": lambda name, step: step if name.endswith("_bias") else step.swapaxes(-1, -2),
    "twice": lambda _name, step: 2 * step,
}


@pytest.mark.parametrize(
    ("base", "mutation"),
    [
        *((name, "one expert left out") for name in KEYS),
        *((name, "wrong axis") for name in KEYS),
        *((name, "twice") for name in KEYS),
        ("deepseek_v3", "shared experts left out"),
        ("deepseek_v3", "routed experts left out"),
        ("gpt_oss", "biases left out"),
    ],
    indirect=["base"],
)
def test_mutations_fail_the_comparison(base, mutation, tmp_path):
    plan = plan_of(base)
    steps = steps_of(base, plan, tmp_path / "out")

    def mutate(name, _values):
        if name not in steps:
            return None
        wrong = MUTATIONS[mutation](name, steps[name])
        return (base.tensors.read(name).astype(np.float64) + wrong).astype(np.float32)

    replace_tensors(tmp_path / "out", mutate)
    assert min(errors(base, plan, tmp_path / "out")) > MARGIN * FP32_END


# Constants.


@of_types("gpt_oss")
def test_a_constant_lives_in_every_bias_where_the_weights_sum_to_one(base, tmp_path):
    plan = plan_of(base, constant=True)
    steps = steps_of(base, plan, tmp_path / "out")
    assert max(errors(base, plan, tmp_path / "out")) <= FP32_END
    shift = EditPlan((Edit(SITES[0], bias=np.linspace(-1, 1, 48)),))
    steps = steps_of(base, shift, tmp_path / "shifted")
    assert list(steps) == ["model.layers.0.mlp.experts.down_proj", "model.layers.0.mlp.experts.down_proj_bias"]
    assert not steps["model.layers.0.mlp.experts.down_proj"].any()
    np.testing.assert_allclose(
        steps["model.layers.0.mlp.experts.down_proj_bias"], np.tile(np.linspace(-1, 1, 48), (4, 1))
    )
    assert max(errors(base, shift, tmp_path / "shifted")) <= FP32_END
    assert constant_has_home(base, SITES[0])
    assert constant_has_home(base, SITES[0], rehoming=False)


@of_types("gpt_oss")
def test_a_shift_behind_a_layer_is_one_of_its_experts_biases(base, tmp_path):
    plan = EditPlan((Edit(Site("residual", 0), bias=np.linspace(-1, 1, 48)),))
    lowering = assert_folds(base, plan, tmp_path / "out")
    assert [fold.slot.site for fold in lowering.folds] == [SITES[0]]


@of_types("qwen3_moe", "deepseek_v3")
def test_elsewhere_a_constant_would_be_weighed(base):
    plan = EditPlan((random_edit(SITES[0], 48, 48, constant=True),))
    assert routes(plan, base, code=True) == ["insert"]
    assert "weighed by the router" in refusal(plan, base)
    assert not constant_has_home(base, SITES[0])


@pytest.mark.parametrize(("model_type", "rank"), [("qwen3_moe", None), ("deepseek_v3", 20), ("deepseek_v3", None)])
def test_a_constant_of_attention_switches_biases_on(model_type, rank, tmp_path, save_tiny):
    """Those that the model has: without a rank of q there is no map of that name, whose bias no loader would know."""
    settings = {"max_position_embeddings": 64} | ({"q_lora_rank": rank} if model_type == "deepseek_v3" else {})
    base = save_tiny(model_type, tmp_path / "base", overrides=settings)
    write_edits(plan_for(base, ("attn_write",), constant=True), tmp_path / "edits.safetensors")
    result = bake(base, tmp_path / "edits.safetensors", tmp_path / "out", verify="forward")
    assert result.verdict == "passed"
    assert {decision.route for decision in result.lowering.decisions} == {"rehome"}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["attention_bias"] is True
    load(tmp_path / "out", torch.float32)  # no key is missing or left over


# Layers without experts.

MIXED = [
    ("qwen3_moe", {"mlp_only_layers": [0]}),
    ("qwen3_moe", {"decoder_sparse_step": 2, "norm_topk_prob": True}),
    ("deepseek_v3", {"first_k_dense_replace": 1}),
]


@pytest.mark.parametrize(("model_type", "overrides"), MIXED)
def test_dense_layers_are_ordinary_ones(model_type, overrides, tmp_path, save_tiny):
    base = open_model_folder(save_tiny(model_type, tmp_path / "base", overrides=overrides))
    dense, sparse = (find_slot(base, site) for site in SITES)
    gate = find_slot(base, Site("mlp_gate", 0))
    assert (dense.kind, dense.weights, dense.d_in) == ("map", ("model.layers.0.mlp.down_proj.weight",), 64)
    assert (gate.kind, gate.weights, gate.d_out) == ("map", ("model.layers.0.mlp.gate_proj.weight",), 64)
    assert sparse.kind == "experts"
    with pytest.raises(BadInputError, match="no site 'mlp_gate' in layer 1"):
        find_slot(base, Site("mlp_gate", 1))
    plan = EditPlan(
        (
            edit_for_slot(dense, reads="input", seed=1),
            edit_for_slot(dense, seed=2),
            edit_for_slot(gate, reads="input", seed=3),
            edit_for_slot(sparse, seed=4),
            edit_for_slot(find_slot(base, Site("attn_write", 1)), seed=5),
        )
    )
    assert_folds(base, plan, tmp_path / "out")
    constant = EditPlan((edit_for_slot(dense, constant=True), edit_for_slot(sparse)))
    assert routes(constant, base, code=True) == ["insert", "fold"]
    read = EditPlan((edit_for_slot(dense, reads="input"), edit_for_slot(sparse, reads="input")))
    assert routes(read, base, code=True) == ["fold", "refuse"]


# Files.


def test_layers_beyond_the_models_stay_byte_for_byte(tmp_path, save_tiny):
    """deepseek_v3's files hold a layer more, which predicts further tokens and which no loader takes for a layer."""
    folder = save_tiny("deepseek_v3", tmp_path / "base")
    extra = {
        f"model.layers.61.{name}": np.random.default_rng(index).normal(size=(48, 48)).astype(np.float32)
        for index, name in enumerate(("eh_proj.weight", "self_attn.o_proj.weight", "mlp.experts.0.down_proj.weight"))
    }
    rewrite_names(folder, lambda tensors: {**tensors, **extra})
    base = open_model_folder(folder)
    plan = plan_for(base, ("attn_write", "mlp_write"))
    fold_into(base, plan, tmp_path / "out")
    out = open_model_folder(tmp_path / "out")
    for name, values in extra.items():
        assert out.tensors.read(name).tobytes() == values.tobytes()
    from alignez_bake.certificate.tensors import certify_tensors

    assert certify_tensors(base, out, lowered(base, plan)).verdict == "passed"


@of_types("gpt_oss")
def test_four_bit_floats_are_refused_by_name_with_the_way_out(base):
    name = "model.layers.0.mlp.experts.down_proj"

    def quantised(tensors):
        left = {key: values for key, values in tensors.items() if key != name}
        blocks, scales = np.zeros((4, 48, 2, 16), np.uint8), np.zeros((4, 48, 2), np.uint8)
        return {**left, f"{name}_blocks": blocks, f"{name}_scales": scales}

    rewrite_names(base.path, quantised)
    damaged = open_model_folder(base.path)
    with pytest.raises(BadInputError, match=r"MXFP4: .*down_proj_blocks.*Mxfp4Config\(dequantize=True\)"):
        find_slot(damaged, SITES[0])
    assert find_slot(damaged, SITES[1]).kind == "experts"


@of_types("gpt_oss")
@pytest.mark.parametrize(
    ("key", "change", "words"),
    [
        ("down_proj", lambda values: values[:3], r"counts 4 experts, but .* holds 3"),
        ("down_proj", lambda values: values[0], r"has shape \[48, 48\]: it must have 3 dimensions"),
        ("down_proj_bias", lambda values: values[:, :-1], r"has shape \[4, 47\]: its weight needs \[4, 48\]"),
        ("down_proj_bias", lambda values: None, r"down_proj_bias' is not in the file"),
    ],
)
def test_stacked_experts_that_do_not_fit_are_refused(key, change, words, base):
    name = f"model.layers.0.mlp.experts.{key}"

    def changed(tensors):
        values = change(tensors[name])
        rest = {other: array for other, array in tensors.items() if other != name}
        return rest if values is None else {**rest, name: np.ascontiguousarray(values)}

    rewrite_names(base.path, changed)
    with pytest.raises(BadInputError, match=words):
        find_slot(open_model_folder(base.path), SITES[0])


@of_types("deepseek_v3")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda values: values[:-1], r"experts at site mlp_write\.0 differ in width or dtype: .*shared_experts"),
        (lambda values: values.astype(np.float16), r"experts at site mlp_write\.0 differ in width or dtype: .* F16"),
        (lambda values: None, r"shared_experts\.down_proj\.weight' is not in the file"),
    ],
)
def test_shared_experts_that_do_not_fit_are_refused(change, words, base):
    name = "model.layers.0.mlp.shared_experts.down_proj.weight"

    def changed(tensors):
        values = change(tensors[name])
        rest = {other: array for other, array in tensors.items() if other != name}
        return rest if values is None else {**rest, name: np.ascontiguousarray(values)}

    rewrite_names(base.path, changed)
    with pytest.raises(BadInputError, match=words):
        find_slot(open_model_folder(base.path), SITES[0])


@of_types("qwen3_moe")
def test_the_number_of_experts_by_either_name(base):
    """Released configs say num_experts, those that transformers 5 writes num_local_experts."""
    assert "num_local_experts" in base.config
    both = rewrite_config(base, num_experts=4)
    assert len(find_slot(both, SITES[0]).weights) == 4
    with pytest.raises(BadInputError, match="name one number of experts, and must be equal"):
        find_slot(rewrite_config(base, num_experts=3), SITES[0])
    file = base.path / "config.json"
    config = json.loads(file.read_text())
    del config["num_local_experts"]
    file.write_text(json.dumps(config | {"num_experts": 4}))
    assert len(find_slot(open_model_folder(base.path), SITES[0]).weights) == 4
