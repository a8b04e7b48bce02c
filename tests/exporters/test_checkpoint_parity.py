"""Baked = hooked, on every architecture, site, and reading, with and without biases and constants.

Tolerances are those of the arithmetic: at a site's own output, given equal input, 1e-6 in fp32 and 1e-12 in fp64;
end to end 1e-5 in fp32. Every case also asserts that the edit moves what it is compared on by 100 tolerances.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from alignez_bake.exporters.checkpoint import CheckpointExporter
from alignez_bake.exporters.protocol import ExportSettings

from alignez_bake.architectures.architecture import architecture_for
from alignez_bake.edit import Edit
from alignez_bake.edit_plan import EditPlan
from alignez_bake.errors import BadInputError
from alignez_bake.lowering.hooks import edited_by_hooks
from alignez_bake.lowering.lower import lower
from alignez_bake.lowering.slot import find_slot
from alignez_bake.model_folder import open_model_folder
from alignez_bake.progress import NoProgress
from alignez_bake.site import Site
from tests.baking import replace_in_file
from tests.lowering.folding import FoldsAndInserts, routes
from tests.random_edits import edit_for_slot, random_edit
from tests.running import first, load, relative, run
from tests.tiny_models import COMBINATIONS, MODEL_TYPES

FP32_SITE, FP32_END, FP64_SITE = 1e-6, 1e-5, 1e-12
MARGIN = 100
CASES = [
    (model_type, bias, kind, reads)
    for model_type, bias in COMBINATIONS
    for kind, legal in architecture_for({"model_type": model_type}).legal_reads().items()
    for reads in legal
    if reads != "block"
]


def bake(base, plan, out):
    out.mkdir(exist_ok=True)
    lowering = lower(plan, base, CheckpointExporter())
    CheckpointExporter().export(base, lowering, out, ExportSettings(), NoProgress())
    return lowering


@pytest.mark.parametrize(("model_type", "bias", "kind", "reads"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_baked_equals_hooked(model_type, bias, kind, reads, dtype, tmp_path, save_tiny):
    base = open_model_folder(save_tiny(model_type, tmp_path / "base", bias=bias, dtype=dtype))
    architecture = base.architecture
    sites = [Site(kind, layer) for layer in range(base.num_layers)]
    slots = [find_slot(base, site) for site in sites]
    # Two entries a site, so that the order of application matters; constants where there is a bias to hold them.
    plan = EditPlan(
        tuple(
            edit_for_slot(slot, reads=how, constant=slot.bias is not None, seed=seed)
            for slot in slots
            for seed, how in enumerate((reads, "output"))
        )
    )
    lowering = bake(base, plan, tmp_path / "out")
    original, baked = load(base.path, dtype), load(tmp_path / "out", dtype)
    paths = [architecture.standalone_path(site) for site in sites]

    base_logits, base_residual, _ = run(original, architecture, paths)
    with edited_by_hooks(original, architecture, plan):
        logits, residual, seen = run(original, architecture, paths)
    baked_logits, baked_residual, _ = run(baked, architecture, paths)

    assert {decision.route for decision in lowering.decisions} == {"fold"}
    assert relative(base_logits, logits) > MARGIN * FP32_END
    assert relative(base_residual, residual) > MARGIN * FP32_END
    assert relative(baked_logits, logits) <= FP32_END
    assert relative(baked_residual, residual) <= FP32_END
    tolerance = FP64_SITE if dtype == torch.float64 else FP32_SITE
    for path in paths:
        module_input, hooked_output = seen[path]
        assert relative(first(baked.get_submodule(path)(module_input)), hooked_output) <= tolerance
        assert relative(first(original.get_submodule(path)(module_input)), hooked_output) > MARGIN * tolerance


@pytest.mark.parametrize(
    ("model_type", "bias"), [("llama", False), ("phi3", False), ("qwen2", False), ("gemma2", False)]
)
def test_a_constant_without_a_bias_is_refused_with_its_reason(model_type, bias, tmp_path, tiny_folder):
    base = open_model_folder(tiny_folder(model_type, bias))
    slot = find_slot(base, Site("mlp_write", 1))
    plan = EditPlan((edit_for_slot(slot, constant=True), edit_for_slot(find_slot(base, Site("mlp_write", 0)))))
    assert routes(plan, base, code=True) == ["insert", "fold"]
    lowering = lower(plan, base, FoldsAndInserts())
    assert [decision.route for decision in lowering.decisions] == ["refuse", "fold"]
    with pytest.raises(BadInputError, match=r"mlp_write\.1: its constant needs a bias, and .* has none.*trust-remote"):
        CheckpointExporter().export(base, lowering, tmp_path, ExportSettings(), NoProgress())
    assert list(tmp_path.iterdir()) == []


REFUSED = [
    ({"gate": "relu"}, "gate 'relu' is not linear"),
    ({"positions": "last"}, "only the last position"),
    ({"reads": "block"}, "it reads what enters the block"),
]


@pytest.mark.parametrize(("changes", "reason"), REFUSED)
def test_what_does_not_fold_is_refused_with_its_reason_and_the_flag(changes, reason, tiny_folder):
    base = open_model_folder(tiny_folder("llama"))
    edit = replace(edit_for_slot(find_slot(base, Site("attn_write", 0))), **changes)
    (decision,) = lower(EditPlan((edit,)), base, CheckpointExporter()).decisions
    assert decision.route == "refuse"
    assert reason in decision.reason
    assert "--trust-remote-code" in decision.reason
    (decision,) = lower(EditPlan((edit,)), base, CheckpointExporter(), code=True).decisions
    assert decision.route == "insert"
    assert reason in decision.reason


@pytest.mark.parametrize(
    ("site", "reason"),
    [(Site("attn_write", 2), "layers 0 to 1"), (Site("residual", 2), "layers 0 to 1"),
     (Site("mlp_gate", 0), "its MLP has no gate"), (Site("attn_q", 0), "not described")],
)  # fmt: skip
@pytest.mark.parametrize("code", [False, True])
def test_sites_that_match_no_module_are_refused_by_name(site, reason, code, tiny_folder):
    base = open_model_folder(tiny_folder("gpt2"))
    edit = replace(edit_for_slot(find_slot(base, Site("attn_write", 0))), site=site)
    (decision,) = lower(EditPlan((edit,)), base, CheckpointExporter(), code=code).decisions
    assert decision.route == "refuse"
    assert reason in decision.reason
    assert "--trust-remote-code" not in decision.reason  # no code would help


def test_widths_of_another_model_are_refused(tiny_folder):
    base, other = open_model_folder(tiny_folder("llama")), open_model_folder(tiny_folder("qwen3"))
    edit = edit_for_slot(find_slot(other, Site("attn_write", 0)))
    (decision,) = lower(EditPlan((edit,)), base, CheckpointExporter()).decisions
    assert decision.route == "refuse"
    assert "48" in decision.reason
    assert "32" in decision.reason


def plan_of_every_route(base):
    """Edits that fold, that need a bias or a module, and that read what one another left."""

    def slot(kind, layer=None):
        return find_slot(base, Site(kind, layer))

    width = slot("residual", 0).d_out
    second_reads = "input" if "input" in base.architecture.legal_reads()["mlp_write"] else "output"
    return EditPlan(
        (
            edit_for_slot(slot("attn_write", 0), seed=1),
            edit_for_slot(slot("mlp_write", 0), constant=True, seed=2),
            edit_for_slot(slot("mlp_write", 0), reads=second_reads, constant=True, seed=3),
            replace(random_edit(Site("attn_write", 1), width, width, reads="block", seed=4), gate="tanh"),
            Edit(Site("residual", 1), bias=0.3 * np.linspace(-1, 1, width)),
            edit_for_slot(slot("embed"), constant=True, seed=5),
            edit_for_slot(slot("lm_head"), reads="input", seed=7),
            replace(random_edit(Site("residual", 0), width, width, seed=6), gate="relu", positions="last"),
        )
    )


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("shard_size", ["5GB", "20KB"])
def test_folds_new_biases_and_modules_live_in_one_checkpoint(model_type, shard_size, tmp_path, save_tiny):
    base = open_model_folder(save_tiny(model_type, tmp_path / "base", max_shard_size=shard_size))
    plan, exporter, out = plan_of_every_route(base), CheckpointExporter(), tmp_path / "out"
    lowering = lower(plan, base, exporter, code=True)
    assert {"fold", "insert"} <= {decision.route for decision in lowering.decisions} <= {"fold", "rehome", "insert"}
    out.mkdir()
    exporter.export(base, lowering, out, ExportSettings(), NoProgress())
    assert exporter.certify_tensors(base, lowering, out, NoProgress()).verdict == "passed"
    stored = sum((out / file).stat().st_size for file in base.tensors.files)
    assert exporter.bytes_needed(base, lowering, ExportSettings()) == stored

    baked, unused = exporter.reload(base, out, lowering, device="cpu", trust_remote_code=False).loaded
    assert unused == ()
    original = load(base.path, torch.float32)
    before = run(original, base.architecture, [])[:2]
    with edited_by_hooks(original, base.architecture, plan):
        hooked = run(original, base.architecture, [])[:2]
    after = run(baked, base.architecture, [])[:2]
    for unedited, expected, found in zip(before, hooked, after, strict=True):
        assert relative(unedited, expected) > MARGIN * FP32_END
        assert relative(found, expected) <= FP32_END


# Mutations: each is a mistake that someone made; the comparison above must see every one of them.
@pytest.mark.parametrize("mutation", ["transposed", "twice", "one layer left out"])
def test_mutations_fail_the_comparison(mutation, tmp_path, save_tiny):
    from alignez_bake.lowering.fold import EditedTensors

    base = open_model_folder(save_tiny("llama", tmp_path / "base", dtype=torch.float32))
    sites = [Site("attn_write", layer) for layer in range(base.num_layers)]
    plan = EditPlan(tuple(edit_for_slot(find_slot(base, site)) for site in sites))
    lowering = bake(base, plan, tmp_path / "out")
    edited = EditedTensors(lowering.folds, base.tensors)

    def mutate(name, _values):
        if name not in edited:
            return None
        tensor = edited.compute(name)
        step = tensor.exact - tensor.base
        if mutation == "transposed":
            return (tensor.base + step.T).astype(np.float32)
        if mutation == "twice":
            return (tensor.base + 2 * step).astype(np.float32)
        return (tensor.base if "layers.1." in name else tensor.exact).astype(np.float32)

    file = base.tensors.files[0]
    replace_in_file(tmp_path / "out" / file, mutate)
    original, mutant = load(base.path, torch.float32), load(tmp_path / "out", torch.float32)
    with edited_by_hooks(original, base.architecture, plan):
        logits, _, _ = run(original, base.architecture, [])
    mutant_logits, _, _ = run(mutant, base.architecture, [])
    assert relative(mutant_logits, logits) > MARGIN * FP32_END
