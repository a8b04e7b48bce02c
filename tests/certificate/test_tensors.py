"""Level `tensors` passes on right bakes and finds every wrong bit."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
import torch

from alignez_bake.certificate.tensor_comparison import values_off_formula
from alignez_bake.commands.bake import bake
from alignez_bake.edit_plan import EditPlan
from alignez_bake.lowering.fold import EditedTensors, FoldedTensor, delivery
from alignez_bake.lowering.slot import find_slot
from alignez_bake.model_folder import open_model_folder
from alignez_bake.site import Site
from tests.baking import certify, flipped, lowered, plan_for, replace_tensors, rewrite_names
from tests.random_edits import edit_for_slot

EDITED = "model.layers.1.self_attn.o_proj.weight"
UNTOUCHED = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def baked(tmp_path_factory, save_tiny):
    """Base, result and plan of a right fp32 bake."""
    folder = tmp_path_factory.mktemp("baked")
    base = save_tiny("llama", folder / "base")
    plan = plan_for(base)
    assert bake(base, plan, folder / "out").verdict == "passed"
    return base, folder / "out", plan


@pytest.fixture
def mutant(baked, tmp_path):
    """A copy of the result, to be changed."""
    return shutil.copytree(baked[1], tmp_path / "mutant")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "phi3"])
def test_right_bakes_pass_in_every_dtype(model_type, dtype, tmp_path, save_tiny):
    base = save_tiny(model_type, tmp_path / "base", dtype=dtype)
    kinds = ("attn_write", "mlp_write", *(["mlp_gate"] if model_type == "phi3" else []))
    plan = plan_for(base, kinds, constant=model_type == "gpt2")
    result = bake(base, plan, tmp_path / "out")
    assert result.verdict == "passed"
    (level,) = result.levels
    assert len(level.deliveries) == len(kinds) * 2 * (2 if model_type == "gpt2" else 1)
    assert level.untouched == len(open_model_folder(base).tensors) - len(level.deliveries)
    assert 0.99 <= level.lowest_share <= 1.01
    written = json.loads((tmp_path / "out" / "alignez" / "certificate.json").read_text())
    assert written["levels"]["tensors"] == json.loads(json.dumps(level.to_json()))


def test_a_wider_dtype_passes_and_is_stated(tmp_path, save_tiny):
    base = save_tiny("llama", tmp_path / "base", dtype=torch.bfloat16)
    result = bake(base, plan_for(base), tmp_path / "out", dtype="float32")
    assert result.verdict == "passed"
    assert result.levels[0].dtype == "F32"
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float32"


@pytest.mark.parametrize("name", [EDITED, UNTOUCHED])
def test_one_flipped_bit_is_found(baked, mutant, name):
    replace_tensors(mutant, lambda key, values: flipped(values) if key == name else None)
    certificate = certify(baked[0], mutant, baked[2])
    assert certificate.verdict == "failed"
    assert any(name in reason for reason in certificate.reasons)


def test_a_swapped_tensor_is_found(baked, mutant):
    first, second = "model.layers.0.mlp.up_proj.weight", UNTOUCHED
    values = {name: open_model_folder(mutant).tensors.read(name) for name in (first, second)}
    replace_tensors(mutant, lambda key, _values: {first: values[second], second: values[first]}.get(key))
    certificate = certify(baked[0], mutant, baked[2])
    assert certificate.verdict == "failed"
    assert "2 tensor(s) without an edit differ from the base's" in certificate.reasons[0]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda tensors: tensors | {"model.extra.weight": np.zeros(3, np.float32)},
            "are neither the base's nor the edits'",
        ),
        (lambda tensors: {key: v for key, v in tensors.items() if key != UNTOUCHED}, "that must be there are missing"),
        (lambda tensors: tensors | {UNTOUCHED: tensors[UNTOUCHED].T}, "has shape"),
        (lambda tensors: tensors | {UNTOUCHED: tensors[UNTOUCHED].astype(np.float64)}, "F32, F64"),
    ],
    ids=["added", "missing", "reshaped", "one tensor wider"],
)
def test_other_tensors_than_the_bases_are_found(baked, mutant, change, reason):
    rewrite_names(mutant, change)
    certificate = certify(baked[0], mutant, baked[2])
    assert certificate.verdict == "failed"
    assert any(reason in line for line in certificate.reasons)


@pytest.mark.parametrize("mutation", ["twice", "one layer left out", "transposed", "nothing", "half"])
def test_wrong_arithmetic_is_found(baked, mutant, mutation):
    base = open_model_folder(baked[0])
    edited = EditedTensors(lowered(base, baked[2]).folds, base.tensors)

    def wrong(name, _values):
        if name not in edited:
            return None
        tensor = edited.compute(name)
        step = tensor.exact - tensor.base
        values = {
            "twice": tensor.base + 2 * step,
            "one layer left out": tensor.base if "layers.1" in name else tensor.exact,
            "transposed": tensor.base + step.T,
            "nothing": tensor.base,
            "half": tensor.base + 0.5 * step,
        }[mutation]
        return values.astype(np.float32)

    replace_tensors(mutant, wrong)
    certificate = certify(baked[0], mutant, baked[2])
    assert certificate.verdict == "failed"
    assert "are not the formula's" in certificate.reasons[0]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"rms_norm_eps": 0.5}, "rms_norm_eps"),
        ({"auto_map": {"AutoModel": "code.Model"}}, "auto_map"),
        ({"dtype": "bfloat16"}, "dtype"),
        ({"torch_dtype": "float16"}, "torch_dtype"),
    ],
)
def test_a_changed_config_is_found(baked, mutant, changes, reason):
    config = json.loads((mutant / "config.json").read_text())
    (mutant / "config.json").write_text(json.dumps(config | changes))
    certificate = certify(baked[0], mutant, baked[2])
    assert certificate.verdict == "failed"
    assert reason in certificate.reasons[0]


@pytest.mark.parametrize("change", ["changed", "removed"])
def test_a_changed_tokenizer_is_found(baked, mutant, change):
    file = mutant / "tokenizer.json"
    if change == "changed":
        file.write_bytes(file.read_bytes().replace(b"a", b"b", 1))
    else:
        file.unlink()
    level = certify(baked[0], mutant, baked[2])
    assert level.verdict == "failed"
    assert "tokenizer.json" in level.reasons[0]


def test_an_entry_of_null_that_is_left_out_is_found(tmp_path, save_tiny):
    base = save_tiny("mistral", tmp_path / "base")
    plan = plan_for(base)
    result = bake(base, plan, tmp_path / "out").path
    config = json.loads((result / "config.json").read_text())
    assert config.pop("sliding_window") is None
    (result / "config.json").write_text(json.dumps(config))
    level = certify(base, result, plan)
    assert level.verdict == "failed"
    assert "sliding_window" in level.reasons[0]


@pytest.mark.parametrize(
    "name", ["adapter_config.json", "extra.safetensors", "chat_template.jinja", "onnx/model.onnx", "more.py"]
)
def test_a_file_that_a_loader_may_take_is_found(baked, mutant, name):
    (mutant / name).parent.mkdir(exist_ok=True)
    (mutant / name).write_text("{}")
    level = certify(baked[0], mutant, baked[2])
    assert level.verdict == "failed"
    assert level.reasons == (f"1 file(s) are neither the base's nor the edits': {name}",)


def test_files_that_no_loader_takes_may_come(baked, mutant):
    (mutant / ".gitattributes").write_text("")
    (mutant / ".cache").mkdir()
    (mutant / ".cache" / "lock").write_text("")
    (mutant / "alignez" / "report.html").write_text("")
    assert certify(baked[0], mutant, baked[2]).verdict == "passed"


def test_a_config_that_rounds_a_wider_result_again_is_found(tmp_path, save_tiny):
    base = save_tiny("llama", tmp_path / "base", dtype=torch.bfloat16)
    plan = plan_for(base)
    bake(base, plan, tmp_path / "out", dtype="float32")
    shutil.copyfile(base / "config.json", tmp_path / "out" / "config.json")
    certificate = certify(base, tmp_path / "out", plan)
    assert certificate.verdict == "failed"
    assert "config.json says {'dtype': 'bfloat16'}" in certificate.reasons[0]


@pytest.mark.parametrize("model_type", ["mixtral", "llama"])
def test_experts_and_embeddings_are_held_to_the_formula(model_type, tmp_path, save_tiny):
    base = save_tiny(model_type, tmp_path / "base", dtype=torch.bfloat16)
    kind = "mlp_write" if model_type == "mixtral" else "embed"
    slot = find_slot(open_model_folder(base), Site(kind, 0 if kind == "mlp_write" else None))
    plan = EditPlan((edit_for_slot(slot, constant=kind == "embed"),))
    result = bake(base, plan, tmp_path / "out")
    assert result.verdict == "passed"
    assert [entry.name for entry in result.levels[0].deliveries] == sorted(slot.weights)
    name = slot.weights[-1]
    original = open_model_folder(base).tensors
    for change in (flipped, lambda _values: original.read(name)):
        mutant = shutil.copytree(tmp_path / "out", tmp_path / "mutant", dirs_exist_ok=True)
        replace_tensors(mutant, lambda key, values, change=change: change(values) if key == name else None)
        certificate = certify(base, mutant, plan)
        assert certificate.verdict == "failed"
        assert certificate.reasons[0].startswith(f"{name}: ")


def test_other_edits_than_those_baked_are_found(baked):
    assert certify(baked[0], baked[1], plan_for(baked[0], seed=1)).verdict == "failed"


def test_edits_that_change_nothing_are_inconclusive(baked, tmp_path):
    result = bake(baked[0], baked[2].scaled(0.0), tmp_path / "out")
    assert result.verdict == "inconclusive"
    assert result.path == tmp_path / "out.failed"
    assert result.levels[0].lowest_share is None


@pytest.mark.parametrize(
    ("changes", "dial"), [({"strength": 0.0}, 1.0), ({"strength": 1e-60}, 1.0), ({}, 0.0), ({"right": 0.0}, 1.0)]
)
def test_modules_that_add_nothing_are_inconclusive(changes, dial, baked, tmp_path):
    (edit, *_) = baked[2].edits
    edit = replace(edit, gate="relu", objective="a")
    changes = changes | ({"right": np.zeros_like(edit.right)} if "right" in changes else {})
    assert bake(baked[0], EditPlan((edit,)), tmp_path / "acting", trust_remote_code=True).verdict == "passed"
    plan = EditPlan((replace(edit, **changes),), {"a": dial})
    assert bake(baked[0], plan, tmp_path / "out", trust_remote_code=True).verdict == "inconclusive"


def folded(exact, base=None):
    exact = np.asarray(exact, np.float64)
    return FoldedTensor("w", np.zeros_like(exact) if base is None else np.asarray(base, np.float64), exact)


BF16 = ml_dtypes.bfloat16


@pytest.mark.parametrize(
    ("exact", "stored", "wrong"),
    [
        (1 + 2**-8, 1.0, False),  # a tie: either neighbour, whichever way the noise of a sum turned it
        (1 + 2**-8, 1 + 2**-7, False),
        (1 + 2**-8 + 2**-23, 1.0, False),  # as near to the middle as noise can be mistaken for it
        (1 + 2**-8 + 2**-12, 1.0, True),  # not a tie: 1 + 2^-7 is nearer
        (1 + 2**-8 + 2**-12, 1 + 2**-7, False),
        (1 + 2**-9, 1 + 2**-7, True),
        (1.0, 1 + 2**-7, True),
        (1 + 2**-7, 1 + 2 * 2**-7, True),
        (0.0, -0.0, False),
        (-0.0, 0.0, False),
        (1.0, np.nan, True),
        (1.0, np.inf, True),
        (3.38e38, np.inf, True),
    ],
)
def test_values_off_formula_in_bf16(exact, stored, wrong):
    assert values_off_formula(np.array([[exact, 2.0]]), np.array([[stored, 2.0]], BF16)) == int(wrong)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, BF16])
def test_the_neighbour_of_the_right_value_is_wrong(dtype):
    exact = np.random.default_rng(0).normal(size=(8, 8))
    right = exact.astype(dtype)
    assert values_off_formula(np.asarray(right, np.float64), right) == 0
    assert values_off_formula(np.asarray(right, np.float64), np.nextafter(right, dtype(9), dtype=dtype)) == 64


@pytest.mark.parametrize(
    ("exact", "stored", "wrong"),
    [
        (1.0, 1.0, False),
        (1.0 + 2.0**-8 + 1e-9, 1.0, False),  # above the middle by less than the slack
        (1.0 + 2.0**-8 + 1e-6, 1.0, True),
        # What is left of large terms: several neighbours lie within the slack.
        (2.0**-30, 2.0**-30 * (1 + 2.0**-6), False),
        (2.0**-30, -(2.0**-29), False),
        (2.0**-30, 2.0**-20, True),
        (1.0, np.inf, True),
    ],
)
def test_values_of_another_arithmetic_may_be_off_by_its_slack(exact, stored, wrong):
    slack = np.array([2.0**-26, 0.0])
    assert values_off_formula(np.array([exact, 2.0]), np.array([stored, 2.0], BF16), slack) == int(wrong)


def test_fp64_is_compared_with_1e_12_of_the_largest():
    exact = np.array([1.0, 1e-9])
    assert values_off_formula(np.asarray(exact, np.float64), exact + 0.9e-12) == 0
    assert values_off_formula(np.asarray(exact, np.float64), exact + np.array([0.0, 1.1e-12])) == 1
    assert values_off_formula(np.asarray(exact, np.float64), np.array([1.0, np.nan])) == 1


def test_delivery_of_what_rounding_kept():
    base, step = np.full((4, 4), 1.0), np.full((4, 4), 2.0**-9)
    lost = delivery(folded(base + step, base), base.astype(BF16))
    assert (lost.share, lost.residual) == (0.0, 1.0)
    kept = delivery(folded(base + step, base), base + step)
    assert (kept.share, kept.residual) == (1.0, 0.0)
    assert kept.relative_change == pytest.approx(2.0**-9)
    zero_base = delivery(folded(step), step)
    assert zero_base.relative_change is None
    assert delivery(folded(base, base), base).share is None


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_delivery_of_edits_whose_squares_no_float_holds(size):
    step = size * np.arange(1.0, 5.0)
    found = delivery(folded(step, np.full(4, size)), np.full(4, size) + 0.5 * (step - size))
    assert found.share == pytest.approx(0.5)
    assert found.residual == pytest.approx(0.5)
    assert found.relative_change == pytest.approx(np.sqrt(14) / 2)
