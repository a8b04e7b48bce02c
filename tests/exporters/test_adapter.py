"""A LoRA adapter, loaded by PEFT itself, gives the hooked model, and merged the folded checkpoint.

Tolerances are those of the arithmetic in fp32: end to end 1e-5; a merged weight 1e-6. Every case asserts that the edit
moves what it is compared on by 100 tolerances.
"""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from alignez_bake.exporters.adapter import AdapterExporter
from alignez_bake.exporters.adapter_pairs import adapter_layout
from alignez_bake.exporters.checkpoint import CheckpointExporter
from alignez_bake.exporters.peft_files import CONFIG_FILE, METADATA, WEIGHTS_FILE, encode_pair
from alignez_bake.exporters.protocol import ExportSettings

from alignez_bake.edit_plan import EditPlan
from alignez_bake.lowering.hooks import edited_by_hooks
from alignez_bake.lowering.lower import lower
from alignez_bake.lowering.slot import find_slot
from alignez_bake.model_folder import open_model_folder
from alignez_bake.progress import NoProgress
from alignez_bake.safetensors_io.writer import write_tensors
from alignez_bake.site import Site
from tests.random_edits import edit_for_slot, random_edit
from tests.running import load, relative, run
from tests.tiny_models import COMBINATIONS

peft = pytest.importorskip("peft")
FP32_WEIGHT, FP32_END = 1e-6, 1e-5
MARGIN = 100
GATES = {"llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text", "olmo2", "phi3", "smollm3", "granite"}
EXPERTS = {"mixtral", "qwen3_moe", "deepseek_v3"}
CASES = [
    (model_type, bias, kind, reads)
    for model_type, bias in COMBINATIONS
    for kind in ("attn_write", "mlp_write", "mlp_gate")
    if kind != "mlp_gate" or model_type in GATES
    for reads in ("output", "input")
    if not (kind == "mlp_write" and (model_type == "gpt_oss" or (reads == "input" and model_type in EXPERTS)))
]


def plan_of(base, kinds, readings=("output", "output"), layers=None, objectives=(None, None)):
    """Two entries a site, so that their order matters; constants where there is a bias to hold them."""
    slots = [
        find_slot(base, Site(kind, layer))
        for kind in kinds
        for layer in (range(base.num_layers) if layers is None else layers)
    ]
    edits = [
        random_edit(
            slot.site,
            slot.d_out,
            slot.d_in if reads == "input" else slot.d_out,
            reads=reads,
            rank=1 + seed,
            constant=slot.bias is not None,
            seed=seed,
            objective=objective,
        )
        for slot in slots
        for seed, (reads, objective) in enumerate(zip(readings, objectives, strict=True))
    ]
    return EditPlan(tuple(edits))


def export(base, plan, out):
    """Write the adapter, check level `tensors`, and return the lowering."""
    out.mkdir()
    exporter = AdapterExporter()
    lowering = lower(plan, base, exporter)
    exporter.export(base, lowering, out, ExportSettings(base_name=str(base.path)), NoProgress())
    certificate = exporter.certify_tensors(base, lowering, out, NoProgress())
    assert (certificate.verdict, certificate.reasons) == ("passed", ())
    return lowering


def adapted(base, out):
    """As a user does it: the base by transformers, the adapter by PEFT."""
    return peft.PeftModel.from_pretrained(load(base.path, torch.float32), str(out)).eval()


def logits_of(model, base):
    plain = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    return run(plain, base.architecture, [])[0]


def hooked_logits(base, plan):
    model = load(base.path, torch.float32)
    with edited_by_hooks(model, base.architecture, plan):
        return logits_of(model, base)


@pytest.mark.parametrize(("model_type", "bias", "kind", "reads"), CASES)
def test_adapter_equals_hooks_and_merged_it_equals_the_checkpoint(model_type, bias, kind, reads, tmp_path, tiny_folder):
    base = open_model_folder(tiny_folder(model_type, bias))
    plan = plan_of(base, [kind], (reads, "output"))
    lowering = export(base, plan, tmp_path / "out")
    loaded = AdapterExporter().reload(base, tmp_path / "out", lowering, device="cpu", trust_remote_code=False).loaded
    hooked, unedited = hooked_logits(base, plan), logits_of(load(base.path, torch.float32), base)
    assert relative(unedited, hooked) > MARGIN * FP32_END
    assert relative(logits_of(loaded.model, base), hooked) <= FP32_END

    (tmp_path / "checkpoint").mkdir()
    exporter = CheckpointExporter()
    exporter.export(base, lower(plan, base, exporter), tmp_path / "checkpoint", ExportSettings(), NoProgress())
    folded = load(tmp_path / "checkpoint", torch.float32).state_dict()
    merged = adapted(base, tmp_path / "out").merge_and_unload(safe_merge=True).state_dict()
    original = load(base.path, torch.float32).state_dict()
    assert merged.keys() == folded.keys()
    changed = {name for name in folded if not torch.equal(folded[name], original[name])}
    assert changed
    for name in folded:
        if name in changed:
            assert relative(original[name], folded[name]) > MARGIN * FP32_WEIGHT
            assert relative(merged[name], folded[name]) <= FP32_WEIGHT
        else:
            assert torch.equal(merged[name], original[name]), name


@pytest.mark.parametrize(
    ("model_type", "overrides"),
    [("qwen3_moe", {"mlp_only_layers": [0]}), ("deepseek_v3", {"first_k_dense_replace": 1, "n_shared_experts": 3})],
)
def test_layers_with_experts_and_without_have_one_adapter(model_type, overrides, tmp_path, save_tiny):
    """PEFT takes a module `down_proj` of these models for stacked experts, whatever it is."""
    base = open_model_folder(save_tiny(model_type, tmp_path / "base", overrides=overrides))
    sites = [Site("mlp_write", 0), Site("mlp_gate", 0), Site("mlp_write", 1), Site("attn_write", 1)]
    plan = EditPlan(tuple(edit_for_slot(find_slot(base, site)) for site in sites))
    export(base, plan, tmp_path / "out")
    hooked, unedited = hooked_logits(base, plan), logits_of(load(base.path, torch.float32), base)
    assert relative(unedited, hooked) > MARGIN * FP32_END
    model = adapted(base, tmp_path / "out")
    assert relative(logits_of(model, base), hooked) <= FP32_END
    assert relative(logits_of(model.merge_and_unload(safe_merge=True), base), hooked) <= FP32_END


@pytest.mark.parametrize(
    ("model_type", "bias", "kinds", "readings"),
    [
        ("llama", False, ("attn_write", "mlp_write", "mlp_gate"), ("input", "output")),
        ("llama", True, ("attn_write", "mlp_write"), ("output", "input")),
        ("gpt2", True, ("attn_write", "mlp_write"), ("output", "output")),
        ("phi3", False, ("mlp_gate", "attn_write"), ("output", "input")),
        ("mixtral", False, ("attn_write", "mlp_write"), ("output", "output")),
    ],
)
def test_dialling_the_live_adapter_is_dialling_the_objectives(model_type, bias, kinds, readings, tmp_path, tiny_folder):
    """Objectives are parallel, so their dials are linear, and so is the adapter's scale, its constants included."""
    base = open_model_folder(tiny_folder(model_type, bias))
    plan = plan_of(base, kinds, readings, objectives=("one", "two")).with_weights({"one": 1.5, "two": -0.5})
    export(base, plan, tmp_path / "out")
    model = adapted(base, tmp_path / "out")
    unedited, full = logits_of(load(base.path, torch.float32), base), hooked_logits(base, plan)
    half = hooked_logits(base, plan.with_weights({"one": 0.75, "two": -0.25}))
    assert relative(full, half) > MARGIN * FP32_END
    assert relative(unedited, half) > MARGIN * FP32_END
    layers = [module for module in model.modules() if hasattr(module, "set_scale")]
    assert layers
    for scale, expected in ((1.0, full), (0.5, half), (0.0, unedited)):
        for layer in layers:
            layer.set_scale("default", scale)
        assert relative(logits_of(model, base), expected) <= FP32_END
    with model.disable_adapter():
        assert torch.equal(logits_of(model, base), unedited)


def test_stacking_the_parts_is_another_edit(tmp_path, tiny_folder):
    """A_i = R_iᵀ W beside each other applies the second entry to the unedited output: every check must see it."""
    base = open_model_folder(tiny_folder("llama"))
    plan = plan_of(base, ["attn_write"])
    lowering = export(base, plan, tmp_path / "out")
    layout = adapter_layout(base, lowering)
    tensors = {}
    for module in layout.modules:
        pair = module.pair(layout.rank, base.tensors)
        weight = base.tensors.read(module.weights[0]).astype(np.float64)
        rights = [edit.right for edit in plan.groups_at(module.folds[0].slot.site)[0].edits]
        stacked = pair._replace(a_matrix=np.vstack([right.T @ weight for right in rights])[np.newaxis])
        tensors |= encode_pair(module, stacked, constants=layout.constants)
    write_tensors(tmp_path / "out" / WEIGHTS_FILE, tensors, METADATA)
    assert relative(logits_of(adapted(base, tmp_path / "out"), base), hooked_logits(base, plan)) > MARGIN * FP32_END
    certificate = AdapterExporter().certify_tensors(base, lowering, tmp_path / "out", NoProgress())
    assert certificate.verdict == "failed"
    assert "off the formula" in certificate.reasons[0]


@pytest.mark.parametrize(
    ("model_type", "sites", "target"),
    [
        ("llama", [("attn_write", 0), ("attn_write", 1)], {"target_modules": ["o_proj"]}),
        (
            "llama",
            [("attn_write", 1), ("mlp_gate", 1)],
            {"target_modules": ["gate_proj", "o_proj"], "layers_to_transform": [1], "layers_pattern": ["layers"]},
        ),
        # No name with layers says just these two.
        (
            "llama",
            [("attn_write", 0), ("mlp_write", 1)],
            {"target_modules": ["model.layers.0.self_attn.o_proj", "model.layers.1.mlp.down_proj"]},
        ),
        # gpt2 has another c_proj in each layer, and calls its layers h.
        ("gpt2", [("mlp_write", 0), ("mlp_write", 1)], {"target_modules": ["mlp.c_proj"]}),
        (
            "gpt2",
            [("attn_write", 0), ("mlp_write", 0)],
            {"target_modules": ["c_proj"], "layers_to_transform": [0], "layers_pattern": ["h"]},
        ),
        (
            "opt",
            [("mlp_write", 1)],
            {"target_modules": ["fc2"], "layers_to_transform": [1], "layers_pattern": ["layers"]},
        ),
        (
            "mixtral",
            [("mlp_write", 1)],
            {"target_modules": [], "target_parameters": ["model.layers.1.mlp.experts.down_proj"]},
        ),
    ],
)  # fmt: skip
def test_just_the_edited_maps_are_wrapped_and_named_as_shortly_as_can_be(
    model_type, sites, target, tmp_path, tiny_folder
):
    base = open_model_folder(tiny_folder(model_type))
    slots = [find_slot(base, Site(*site)) for site in sites]
    plan = EditPlan(tuple(edit_for_slot(slot) for slot in slots))
    export(base, plan, tmp_path / "out")
    config = json.loads((tmp_path / "out" / CONFIG_FILE).read_text())
    keys = ("target_modules", "target_parameters", "layers_to_transform", "layers_pattern")
    assert {key: config[key] for key in keys if key in config} == target
    model = adapted(base, tmp_path / "out")
    wrapped = {name for name, module in model.get_base_model().named_modules() if hasattr(module, "set_scale")}
    expected = {base.architecture.module_path(slot.site) for slot in slots}
    assert wrapped == ({f"{path}.experts" for path in expected} if model_type == "mixtral" else expected)
    assert relative(logits_of(model, base), hooked_logits(base, plan)) <= FP32_END


def test_a_16_bit_base_keeps_the_edit_in_fp32(tmp_path, save_tiny):
    """bf16 weights would round this edit away; beside them it stays whole, which is what an adapter is for."""
    base = open_model_folder(save_tiny("llama", tmp_path / "base", dtype=torch.bfloat16))
    plan = plan_of(base, ["attn_write"]).scaled(1e-4)
    lowering = export(base, plan, tmp_path / "out")
    assert AdapterExporter().certify_tensors(base, lowering, tmp_path / "out", NoProgress()).lowest_share > 0.999999
    loaded = (
        AdapterExporter().reload(base, tmp_path / "out", lowering, device="cpu", trust_remote_code=False).loaded.model
    )
    dtypes = {name.rpartition("lora_")[1]: parameter.dtype for name, parameter in loaded.named_parameters()}
    assert dtypes == {"": torch.bfloat16, "lora_": torch.float32}


class Int8Linear(torch.nn.Linear):
    """A map whose weight lies in memory as int8 with a scale a row, and is dequantised when it runs."""

    def __init__(self, linear):
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        scale = linear.weight.abs().amax(dim=1, keepdim=True) / 127
        self.weight = torch.nn.Parameter((linear.weight / scale).round().to(torch.int8), requires_grad=False)
        self.bias, self.scale = linear.bias, scale

    def dequantised(self):
        return self.weight.to(torch.float32) * self.scale

    def forward(self, values):
        return torch.nn.functional.linear(values, self.dequantised(), self.bias)


@pytest.mark.parametrize("reads", ["output", "input"])
def test_on_a_quantised_base_an_adapter_made_from_the_dequantised_weights_is_exact(reads, tmp_path, save_tiny):
    paths = [f"model.layers.{layer}.{name}" for layer in (0, 1) for name in ("self_attn.o_proj", "mlp.down_proj")]

    def quantised(path):
        model = load(path, torch.float32)
        for name in paths:
            model.set_submodule(name, Int8Linear(model.get_submodule(name)))
        return model

    folder = save_tiny("llama", tmp_path / "base")
    original, stored = load(folder, torch.float32), quantised(folder)
    for name in paths:
        original.get_submodule(name).weight.data = stored.get_submodule(name).dequantised()
    original.save_pretrained(tmp_path / "dequantised")

    base = open_model_folder(tmp_path / "dequantised")
    plan = plan_of(base, ["attn_write", "mlp_write"], (reads, "output"))
    export(base, plan, tmp_path / "out")
    unedited = logits_of(stored, base)
    with edited_by_hooks(stored, base.architecture, plan):
        hooked = logits_of(stored, base)
    adapter = peft.PeftModel.from_pretrained(quantised(folder), str(tmp_path / "out")).eval()
    assert relative(unedited, hooked) > MARGIN * FP32_END
    assert relative(logits_of(adapter, base), hooked) <= FP32_END
    # Made from the weights before they were quantised, it edits what the quantised map does not compute.
    base_before = open_model_folder(folder)
    export(base_before, plan, tmp_path / "other")
    adapter = peft.PeftModel.from_pretrained(quantised(folder), str(tmp_path / "other")).eval()
    assert relative(logits_of(adapter, base), hooked) > FP32_END


@pytest.mark.parametrize("with_layers", [False, True])
@pytest.mark.parametrize("model_type", ["llama", "gpt_neox"])
def test_a_head_of_its_own_is_one_more_map(model_type, with_layers, tmp_path, save_tiny):
    base = open_model_folder(save_tiny(model_type, tmp_path / "base", overrides={"tie_word_embeddings": False}))
    slot = find_slot(base, Site("lm_head"))
    edits = [random_edit(slot.site, slot.d_out, slot.d_in, reads="input", seed=5)]
    if with_layers:
        edits += plan_of(base, ["attn_write"], ("input", "input"), layers=[1]).edits
        edits = [replace(edit, offset=None, bias=None) for edit in edits]
    plan = EditPlan(tuple(edits))
    export(base, plan, tmp_path / "out")
    hooked, unedited = hooked_logits(base, plan), logits_of(load(base.path, torch.float32), base)
    assert relative(unedited, hooked) > MARGIN * FP32_END
    assert relative(logits_of(adapted(base, tmp_path / "out"), base), hooked) <= FP32_END


def test_a_tied_head_is_refused_with_its_reason(tiny_folder):
    base = open_model_folder(tiny_folder("gpt2"))
    slot = find_slot(base, Site("lm_head"))
    (decision,) = lower(EditPlan((random_edit(slot.site, slot.d_out, slot.d_out),)), base, AdapterExporter()).decisions
    assert decision.route == "refuse"
    assert "tied to the embedding" in decision.reason
