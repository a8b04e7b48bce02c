"""An inserted checkpoint, loaded as its users load it, is the base with the plan's hooks."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from alignez_bake.inserted.place import find_place
from alignez_bake.lowering.hooks import edited_by_hooks
from alignez_bake.model_folder import open_model_folder
from tests.inserted.plans import CASES, can_carry, mixed_plan
from tests.inserted.saving import edit_at, load_inserted, plan_of, save_inserted
from tests.running import relative
from tests.tiny_models import MODEL_TYPES, VOCABULARY, has_experts

IDS = torch.randint(3, VOCABULARY, (2, 11), generator=torch.Generator().manual_seed(3))
SITE_TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}
END_TOLERANCE = 1e-5
MOVED = 100


@pytest.fixture(scope="module")
def bases(tiny_folder):
    """Folder, description and live model of each base, made once."""
    made = {}

    def base(model_type):
        if model_type not in made:
            path = tiny_folder(model_type)
            live = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
            made[model_type] = (path, open_model_folder(path), live)
        return made[model_type]

    return base


def double(model):
    """In float64, for which grouped expert products do not exist."""
    if has_experts(model):
        model.set_experts_implementation("eager")
    return model.double()


def outcome(model, path):
    """Output of one module and logits."""
    seen = []
    handle = model.get_submodule(path).register_forward_hook(
        lambda _m, _a, output: seen.append(output[0] if isinstance(output, tuple) else output)
    )
    with torch.no_grad():
        logits = model(IDS, use_cache=False).logits
    handle.remove()
    (found,) = seen
    return found, logits


@pytest.mark.parametrize(
    ("model_type", "case"),
    [
        (model_type, case)
        for model_type in MODEL_TYPES
        for case, (kind, settings) in CASES.items()
        if can_carry(model_type, kind, settings.get("reads", "output"))
    ],
)
def test_each_kind_of_edit_equals_its_hook(model_type, case, bases, tmp_path):
    path, base, live = bases(model_type)
    kind, settings = CASES[case]
    plan = plan_of(edit_at(base, kind, None if kind == "embed" else 0, **settings))
    (site,) = plan.sites
    place = find_place(base, site, plan.groups_at(site)).module
    plain_output, plain_logits = outcome(live, place)
    with edited_by_hooks(live, base.architecture, plan):
        output, logits = outcome(live, place)
    inserted = load_inserted(save_inserted(path, plan, tmp_path / "inserted"), dtype=torch.float32)
    found_output, found_logits = outcome(inserted, place)
    assert relative(found_output, output) <= SITE_TOLERANCE[torch.float32]
    assert relative(found_logits, logits) <= END_TOLERANCE
    assert relative(plain_output, output) >= MOVED * SITE_TOLERANCE[torch.float32]
    assert relative(plain_logits, logits) >= MOVED * END_TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_many_edits_at_once_equal_their_hooks(model_type, dtype, bases, tmp_path):
    path, base, _ = bases(model_type)
    plan = mixed_plan(base)
    live = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    inserted = load_inserted(save_inserted(path, plan, tmp_path / "inserted"), dtype=torch.float32)
    if dtype == torch.float64:
        live, inserted = double(live), double(inserted)
    place = base.architecture.embed
    _, plain = outcome(live, place)
    with edited_by_hooks(live, base.architecture, plan):
        output, logits = outcome(live, place)
    found_output, found_logits = outcome(inserted, place)
    if dtype == torch.float32:  # in float64 the hook has the edit's own values, the checkpoint has them in float32
        assert relative(found_output, output) <= SITE_TOLERANCE[dtype]
    assert relative(found_logits, logits) <= END_TOLERANCE
    assert relative(plain, logits) >= MOVED * END_TOLERANCE


def test_a_float64_base_gets_float64_edits(save_tiny, tmp_path):
    path = save_tiny("llama", tmp_path / "base", dtype=torch.float64)
    base = open_model_folder(path)
    plan = plan_of(edit_at(base, "mlp_write", 0, gate="tanh"))
    live = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64).eval()
    inserted = load_inserted(save_inserted(path, plan, tmp_path / "inserted"), dtype=torch.float64)
    place = base.architecture.module_path(plan.sites[0])
    plain, _ = outcome(live, place)
    with edited_by_hooks(live, base.architecture, plan):
        output, _ = outcome(live, place)
    assert relative(outcome(inserted, place)[0], output) <= SITE_TOLERANCE[torch.float64]
    assert relative(plain, output) >= 1e-2


@pytest.mark.parametrize("mistake", ["left out", "twice", "other layer", "all for last"])
def test_the_comparison_sees_mistakes(mistake, bases, tmp_path):
    path, base, live = bases("llama")
    edit = edit_at(base, "mlp_write", 0, gate="tanh", positions="last", scale=0.05)
    wrong = {
        "left out": [edit_at(base, "residual", 1, gate="relu", scale=1e-9, strength=0.0)],
        "twice": [edit, edit],
        "other layer": [edit_at(base, "mlp_write", 1, gate="tanh", positions="last", scale=0.05)],
        "all for last": [edit_at(base, "mlp_write", 0, gate="tanh", scale=0.05)],
    }[mistake]
    with edited_by_hooks(live, base.architecture, plan_of(edit)):
        _, logits = outcome(live, base.architecture.embed)
    inserted = load_inserted(save_inserted(path, plan_of(*wrong), tmp_path / "inserted"), dtype=torch.float32)
    assert relative(outcome(inserted, base.architecture.embed)[1], logits) > MOVED * END_TOLERANCE


@pytest.mark.parametrize("model_type", ["llama", "mixtral"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_models_keep_their_edits_in_32(model_type, dtype, bases, tmp_path):
    path, base, _ = bases(model_type)
    plan = plan_of(edit_at(base, "mlp_write", 0, gate="tanh"))
    live = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()
    inserted = load_inserted(save_inserted(path, plan, tmp_path / "inserted"), dtype=dtype)
    for name, parameter in inserted.named_parameters():
        assert parameter.dtype == (torch.float32 if "alignez_edits" in name else dtype)
    place = base.architecture.module_path(plan.sites[0])
    with edited_by_hooks(live, base.architecture, plan):
        output, _ = outcome(live, place)
    found, _ = outcome(inserted, place)
    assert found.dtype == dtype
    assert relative(found.double(), output.double()) <= 2.0**-7
    moved = inserted.to(torch.float16)
    assert {parameter.dtype for parameter in moved.parameters()} == {torch.float16}
    assert outcome(moved, place)[0].isfinite().all()  # the arithmetic is in float32 still
