"""Edits of a mixture of experts: the same in every expert, or not at all."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from alignez_bake.edit import Edit
from alignez_bake.edit_plan import EditPlan
from alignez_bake.errors import BadInputError
from alignez_bake.lowering.fold import EditedTensors
from alignez_bake.lowering.hooks import edited_by_hooks
from alignez_bake.lowering.slot import find_slot
from alignez_bake.model_folder import open_model_folder
from alignez_bake.safetensors_io.writer import write_tensors
from alignez_bake.site import Site
from tests.baking import replace_tensors
from tests.lowering.folding import FP32_END, MARGIN, assert_folds, errors, fold_into, refusal, routes
from tests.random_edits import edit_for_slot, random_edit
from tests.running import load, relative, run

SITE_TOLERANCE = 1e-6
# Square maps, so that no shape tells one axis from the other.
SQUARE = {"intermediate_size": 32}
SITES = (Site("mlp_write", 0), Site("mlp_write", 1))


@pytest.fixture
def base(save_tiny, tmp_path):
    return open_model_folder(save_tiny("mixtral", tmp_path / "base", overrides=SQUARE))


def plan_of(base):
    return EditPlan(tuple(edit_for_slot(find_slot(base, site), seed=1) for site in SITES))


def site_errors(base, plan, out):
    """How far each block's output, given the hooked one's input, lies from the hooked one, relative."""
    original, baked = load(base.path, torch.float32), load(out, torch.float32)
    paths = [base.architecture.module_path(site) for site in plan.sites]
    with edited_by_hooks(original, base.architecture, plan):
        _, _, seen = run(original, base.architecture, paths)
    return [relative(baked.get_submodule(path)(seen[path][0]), seen[path][1]) for path in paths]


def test_a_slot_of_experts_is_the_last_map_of_each_as_the_files_name_them(base):
    slot = find_slot(base, SITES[1])
    assert slot.kind == "experts"
    assert slot.weights == tuple(f"model.layers.1.block_sparse_moe.experts.{index}.w2.weight" for index in range(4))
    assert (slot.bias, slot.d_out, slot.d_in, slot.obstacle) == (None, 32, 32, "")


def test_every_expert_gets_the_edit_and_nothing_else(base, tmp_path):
    plan = plan_of(base)
    lowering = assert_folds(base, plan, tmp_path / "out")
    assert max(site_errors(base, plan, tmp_path / "out")) <= SITE_TOLERANCE
    out = open_model_folder(tmp_path / "out").tensors
    changed = {name for name in base.tensors if not np.array_equal(base.tensors.read(name), out.read(name))}
    assert changed == set(EditedTensors(lowering.folds, base.tensors).names)
    assert changed == {name for site in SITES for name in find_slot(base, site).weights}


def test_experts_that_lie_in_several_files_are_edited_in_each(save_tiny, tmp_path):
    folder = save_tiny("mixtral", tmp_path / "base")
    tensors = open_model_folder(folder).tensors
    weight_map = {name: f"model-0000{1 + ('experts.1.' in name)}-of-00002.safetensors" for name in tensors}
    for file in sorted(set(weight_map.values())):
        shard = {name: tensors.read(name) for name in tensors if weight_map[name] == file}
        write_tensors(folder / file, shard, {"format": "pt"})
    total = sum(tensors.read(name).nbytes for name in tensors)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    base = open_model_folder(folder)
    assert len({base.tensors.file_of(name) for name in find_slot(base, SITES[0]).weights}) > 1
    assert_folds(base, plan_of(base), tmp_path / "out")


@pytest.mark.parametrize("mutation", ["one expert left out", "one expert only", "wrong axis", "twice"])
def test_mutations_fail_the_comparison(mutation, base, tmp_path):
    plan = plan_of(base)
    edited = EditedTensors(fold_into(base, plan, tmp_path / "out").folds, base.tensors)

    def mutate(name, _values):
        if name not in edited:
            return None
        tensor = edited.compute(name)
        step = tensor.exact - tensor.base
        steps = {
            "one expert left out": 0.0 * step if "experts.2." in name else step,
            "one expert only": step if "experts.2." in name else 0.0 * step,
            "wrong axis": step.T,
            "twice": 2 * step,
        }
        return (tensor.base + steps[mutation]).astype(np.float32)

    replace_tensors(tmp_path / "out", mutate)
    assert min(errors(base, plan, tmp_path / "out")) > MARGIN * FP32_END
    assert min(site_errors(base, plan, tmp_path / "out")) > MARGIN * SITE_TOLERANCE


CONSTANTS = [
    random_edit(SITES[0], 32, 32, constant=True),
    Edit(SITES[0], bias=np.ones(32)),
    Edit(SITES[0], left=np.ones((32, 1)), right=np.ones((32, 1)), offset=np.ones(1)),
]


@pytest.mark.parametrize("edit", CONSTANTS, ids=["both", "shift", "offset"])
def test_a_constant_has_no_bias_that_the_router_would_not_weigh(edit, base):
    plan = EditPlan((edit,))
    assert routes(plan, base, code=True) == ["insert"]
    assert routes(plan, base) == ["refuse"]
    reason = refusal(plan, base)
    assert "weighed by the router" in reason
    assert "--trust-remote-code" in reason


def test_a_shift_behind_a_layer_finds_no_bias_in_its_experts(base):
    plan = EditPlan((Edit(Site("residual", 0), bias=np.ones(32)),))
    assert routes(plan, base, code=True) == ["insert"]
    assert routes(plan, base) == ["refuse"]


@pytest.mark.parametrize("code", [False, True])
def test_the_writers_input_is_refused_since_there_are_many(code, base):
    plan = EditPlan((random_edit(SITES[0], 32, 32, reads="input"),))
    assert routes(plan, base, code=code) == ["refuse"]
    assert "every expert has one of its own" in refusal(plan, base)


def test_what_enters_the_block_is_read_by_a_module_alone(base):
    plan = EditPlan((random_edit(SITES[0], 32, 32, reads="block"),))
    assert routes(plan, base, code=True) == ["insert"]
    assert "it reads what enters the block" in refusal(plan, base)


@pytest.mark.parametrize("count", [0, -1, 10**9, 10**30, True, "4", 4.0, None, [4]])
def test_a_number_of_experts_that_is_none_is_refused(count, base):
    file = base.path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_local_experts": count}))
    with pytest.raises(BadInputError, match=r"num_local_experts = .*: it needs a positive number of experts"):
        find_slot(open_model_folder(base.path), SITES[0])


@pytest.mark.parametrize(("count", "words"), [(3, r"the files hold model.*experts\.3\.w2"), (5, r"experts\.4\.w2")])
def test_another_number_of_experts_than_the_files_hold_is_refused(count, words, base):
    """Fewer would leave an expert without the edit, and no check of tensors would notice."""
    file = base.path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_local_experts": count}))
    with pytest.raises(BadInputError, match=words):
        find_slot(open_model_folder(base.path), SITES[0])
