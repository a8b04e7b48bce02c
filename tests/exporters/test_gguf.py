"""The exporter: what goes into which file, what is refused and why, and that the certificate sees what is wrong."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from alignez_bake.exporters.gguf import GgufExporter
from alignez_bake.exporters.gguf_files import (
    ADAPTER_FILE,
    CONTROL_VECTOR_FILE,
    LoraPair,
    read_control_vector,
    read_lora,
    write_control_vector,
    write_lora,
)
from alignez_bake.exporters.protocol import ExportSettings

from alignez_bake.commands.bake import bake
from alignez_bake.edit import Edit
from alignez_bake.edit_plan import EditPlan
from alignez_bake.errors import BadInputError
from alignez_bake.low_rank import low_rank
from alignez_bake.lowering.fold import EditedTensors
from alignez_bake.lowering.lower import lower
from alignez_bake.lowering.slot import find_slot
from alignez_bake.model_folder import open_model_folder
from alignez_bake.site import Site
from tests.baking import lowered, plan_for
from tests.exporters.gguf_artefacts import certify_gguf, export_gguf
from tests.random_edits import edit_for_slot

WIDTH = 32
RNG = np.random.default_rng(3)
SHIFT = RNG.normal(size=WIDTH)
LEFT, RIGHT = RNG.normal(size=(2, WIDTH, 2))


@pytest.fixture
def llama(tiny_folder):
    return open_model_folder(tiny_folder("llama"))


@pytest.fixture
def biased(tiny_folder):
    """llama with a bias at every writer."""
    return open_model_folder(tiny_folder("llama", True))


def plan_of(base, *edits, weights=None):
    return EditPlan(edits, weights or {}, base.fingerprint)


def refusals(base, *edits):
    return [decision.reason for decision in lower(plan_of(base, *edits), base, GgufExporter()).refused]


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (Edit(Site("mlp_write", 1), LEFT, RIGHT, gate="relu"), "not linear"),
        (Edit(Site("mlp_write", 1), LEFT, RIGHT, positions="last"), "last position"),
        (Edit(Site("residual", 1), bias=SHIFT, positions="last"), "last position"),
        (Edit(Site("mlp_write", 1), LEFT, RIGHT, reads="block"), "enters the block"),
        (Edit(Site("residual", 1), LEFT, RIGHT), "cannot depend on the stream"),
        (Edit(Site("embed"), LEFT, RIGHT), "every token"),
        (Edit(Site("embed"), bias=SHIFT), "every token"),
        (Edit(Site("residual", 0), bias=SHIFT), "from layer 1 on"),
        (Edit(Site("mlp_write", 0), bias=SHIFT), "from layer 1 on"),
        (Edit(Site("attn_write", 1), bias=SHIFT), "no place"),
        (Edit(Site("attn_write", 1), LEFT, RIGHT, offset=np.ones(2)), "no place"),
        (Edit(Site("mlp_gate", 1), bias=RNG.normal(size=64)), "no place"),
    ],
)
def test_what_llama_cpp_cannot_carry_is_refused_with_the_reason(llama, edit, said):
    (reason,) = refusals(llama, edit)
    assert said in reason


@pytest.mark.parametrize(
    "edit",
    [
        Edit(Site("mlp_write", 0), LEFT, RIGHT),
        Edit(Site("attn_write", 0), LEFT, RIGHT, reads="input"),
        Edit(Site("mlp_write", 1), LEFT, RIGHT, offset=np.ones(2), bias=SHIFT),
        Edit(Site("mlp_write", 1), bias=SHIFT),
        Edit(Site("residual", 1), bias=SHIFT),
    ],
)
def test_what_it_can_carry_is_not(llama, edit):
    assert refusals(llama, edit) == []


def test_reading_the_output_of_a_map_with_a_bias_is_a_constant(biased):
    at_attention = Edit(Site("attn_write", 1), LEFT, RIGHT)
    (reason,) = refusals(biased, at_attention)
    assert "because it reads the bias model.layers.1.self_attn.o_proj.bias" in reason
    assert refusals(biased, replace(at_attention, reads="input")) == []
    (reason,) = refusals(biased, Edit(Site("mlp_write", 0), LEFT, RIGHT))
    assert "because it reads the bias" in reason
    assert "from layer 1 on" in reason
    assert refusals(biased, Edit(Site("mlp_write", 1), LEFT, RIGHT)) == []


def check(base, plan, dtype=None):
    exporter = GgufExporter()
    lowering = lower(plan, base, exporter)
    lowering.require_complete()
    exporter.check(base, lowering, ExportSettings(dtype=dtype))


@pytest.mark.parametrize(
    ("model_type", "between"), [("gemma2", "post_feedforward_layernorm"), ("granite", "residual_multiplier")]
)
def test_a_constant_that_is_scaled_behind_its_writer_is_refused(model_type, between, tiny_folder, tmp_path):
    base = open_model_folder(tiny_folder(model_type))
    shift = RNG.normal(size=base.config["hidden_size"])
    before = plan_of(base, Edit(Site("mlp_write", 1), bias=shift))
    with pytest.raises(BadInputError, match=rf"mlp_write\.1: it adds a constant before {between}"):
        check(base, before)
    with pytest.raises(BadInputError, match="adds a constant"):
        export_gguf(base, before, tmp_path / "out")
    check(base, plan_of(base, Edit(Site("residual", 1), bias=shift)))
    check(base, plan_for(base, ("mlp_write",)))


def test_an_architecture_that_llama_cpp_lacks_is_refused(tiny_folder):
    base = open_model_folder(tiny_folder("opt"))
    with pytest.raises(BadInputError, match="model_type 'opt'"):
        check(base, plan_for(base))


def test_another_dtype_is_refused(llama):
    check(llama, plan_for(llama), "float32")
    with pytest.raises(BadInputError, match="--dtype 'bfloat16'"):
        check(llama, plan_for(llama), "bfloat16")


def test_a_missing_package_is_refused_before_anything_is_written(llama, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(BadInputError, match=r"alignez-bake\[gguf\]"):
        check(llama, plan_for(llama))


def folded_changes(base, plan):
    """ΔW of every edited weight in float64, [d_out, d_in], as the checkpoint has it."""
    lowering = lowered(base, plan)
    edited = EditedTensors(lowering.folds, base.tensors)
    changes = {}
    for fold in lowering.folds:
        for name in fold.slot.weights:
            tensor = edited.compute(name)
            change = tensor.exact - tensor.base
            changes[name] = change if fold.slot.layout == "out_in" else change.T
    return changes


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "phi3", "gemma2", "gpt_neox", "granite"])
def test_the_products_of_the_pairs_are_what_a_checkpoint_adds(tiny_folder, model_type, tmp_path):
    base = open_model_folder(tiny_folder(model_type))
    plan = plan_for(base, tuple(base.architecture.sites), reads="input")
    lora = read_lora(export_gguf(base, plan, tmp_path / "out") / ADAPTER_FILE)
    changes = folded_changes(base, plan)
    assert len(lora.pairs) == len(changes)
    products = [b.astype(np.float64) @ a for a, b in lora.pairs.values()]
    for product, (name, change) in zip(products, changes.items(), strict=True):
        assert product.shape == change.shape, name
        assert np.linalg.norm(product - change) <= 1e-6 * np.linalg.norm(change), name
        assert np.linalg.norm(change) > 0.01


def test_every_expert_has_its_own_factor(tiny_folder, tmp_path):
    base = open_model_folder(tiny_folder("mixtral"))
    plan = plan_for(base, ("mlp_write",))
    lora = read_lora(export_gguf(base, plan, tmp_path / "out") / ADAPTER_FILE)
    changes = list(folded_changes(base, plan).values())
    products = [product for a, b in lora.pairs.values() for product in b.astype(np.float64) @ a]
    assert len(products) == len(changes) == 8
    for product, change in zip(products, changes, strict=True):
        assert np.linalg.norm(product - change) <= 1e-6 * np.linalg.norm(change)


def test_the_other_half_of_a_fused_map_stays(tiny_folder, tmp_path):
    base = open_model_folder(tiny_folder("phi3"))
    lora = read_lora(export_gguf(base, plan_for(base, ("mlp_gate",)), tmp_path / "out") / ADAPTER_FILE)
    _, b = lora.pairs["blk.1.ffn_up.weight"]
    assert b.shape[0] == 128
    assert np.abs(b[:64]).min(axis=1).max() > 0
    assert not b[64:].any()


def test_pairs_of_lower_rank_are_filled_up_and_scaled_by_one(llama, tmp_path):
    plan = plan_of(
        llama,
        Edit(Site("attn_write", 0), LEFT[:, :1], RIGHT[:, :1]),
        Edit(Site("mlp_write", 1), LEFT, RIGHT),
        Edit(Site("mlp_write", 1), RIGHT, LEFT, objective="other"),
    )
    lora = read_lora(export_gguf(llama, plan, tmp_path / "out") / ADAPTER_FILE)
    assert lora.alpha == 4
    small_a, small_b = lora.pairs["blk.0.attn_output.weight"]
    assert (small_a.shape, small_b.shape) == ((4, 32), (32, 4))
    assert not small_a[1:].any()
    assert not small_b[:, 1:].any()


def test_all_constants_of_a_layer_are_one_vector(biased, tmp_path):
    slot = find_slot(biased, Site("mlp_write", 1))
    linear = replace(edit_for_slot(slot, constant=True), objective="first")
    plan = plan_of(
        biased,
        linear,
        Edit(Site("residual", 1), bias=SHIFT, strength=0.5, objective="second"),
        Edit(Site("residual", 1), bias=SHIFT[::-1].copy()),
        weights={"first": 0.3, "second": -2.0},
    )
    out = export_gguf(biased, plan, tmp_path / "out")
    weight, bias = biased.tensors.read(slot.weight), biased.tensors.read(slot.bias)
    expected = low_rank(plan.groups_at(slot.site), weight, bias).delta_bias - SHIFT + SHIFT[::-1]
    shifts = read_control_vector(out / CONTROL_VECTOR_FILE).shifts
    assert list(shifts) == [1]
    np.testing.assert_allclose(shifts[1], expected, rtol=1e-6, atol=1e-6)
    assert (out / ADAPTER_FILE).exists()


def test_only_what_is_needed_is_written(llama, tmp_path):
    shift = plan_of(llama, Edit(Site("residual", 1), bias=SHIFT))
    assert [file.name for file in export_gguf(llama, shift, tmp_path / "shift").iterdir()] == [CONTROL_VECTOR_FILE]
    assert [file.name for file in export_gguf(llama, plan_for(llama), tmp_path / "map").iterdir()] == [ADAPTER_FILE]


@pytest.mark.parametrize(
    ("edit", "weights"),
    [
        (Edit(Site("residual", 1), bias=np.zeros(WIDTH)), {}),
        (Edit(Site("residual", 1), bias=SHIFT, strength=0.0), {}),
        (Edit(Site("residual", 1), bias=SHIFT, objective="one"), {"one": 0.0}),
        (Edit(Site("mlp_write", 1), LEFT, RIGHT, strength=0.0), {}),
        (Edit(Site("mlp_write", 1), LEFT, RIGHT, objective="one"), {"one": 0.0}),
    ],
)
def test_edits_that_change_nothing_are_inconclusive(edit, weights, llama, tmp_path):
    """As a checkpoint and an adapter of them are, whichever of their factors is zero."""
    plan = plan_of(llama, edit, weights=weights)
    result = bake(llama.path, plan, tmp_path / "gguf", artefact="gguf")
    assert (result.verdict, result.path.name) == ("inconclusive", "gguf.failed")
    if edit.site.kind == "mlp_write":
        assert bake(llama.path, plan, tmp_path / "adapter", artefact="adapter").verdict == "inconclusive"
        assert bake(llama.path, plan, tmp_path / "checkpoint").verdict == "inconclusive"


def test_what_float32_cannot_hold_is_refused(llama, tmp_path):
    for index, edit in enumerate(
        (
            Edit(Site("residual", 1), bias=SHIFT, strength=1e40),
            Edit(Site("mlp_write", 1), LEFT, RIGHT, strength=1e40),
        )
    ):
        with pytest.raises(BadInputError, match="not finite"):
            export_gguf(llama, plan_of(llama, edit), tmp_path / str(index))


def test_refused_edits_are_not_written(llama, tmp_path):
    plan = plan_of(llama, Edit(Site("mlp_write", 1), LEFT, RIGHT), Edit(Site("residual", 0), bias=SHIFT))
    with pytest.raises(BadInputError, match=r"1 of 2 edits cannot be baked as gguf: residual\.0"):
        export_gguf(llama, plan, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def mixed_plan(base):
    return plan_of(
        base,
        *plan_for(base, ("attn_write", "mlp_write")).edits,
        Edit(Site("mlp_write", 1), bias=SHIFT),
        Edit(Site("residual", 1), bias=SHIFT),
    )


def test_the_certificate_passes_what_was_written(llama, tmp_path):
    plan = mixed_plan(llama)
    certificate = certify_gguf(llama, plan, export_gguf(llama, plan, tmp_path / "out"))
    assert (certificate.verdict, certificate.reasons) == ("passed", ())
    assert len(certificate.deliveries) == 5
    assert certificate.lowest_share == pytest.approx(1.0, abs=1e-6)


def test_the_same_edits_give_the_same_bytes(llama, tmp_path):
    plan = mixed_plan(llama)
    first, second = (export_gguf(llama, plan, tmp_path / name) for name in ("first", "second"))
    for name in (ADAPTER_FILE, CONTROL_VECTOR_FILE):
        assert (first / name).read_bytes() == (second / name).read_bytes()


MUTATIONS = {
    "a value": (lambda a, b: (a * np.float32(1.0001), b), 1.0, "off the formula"),
    "applied twice": (lambda a, b: (a, 2 * b), 1.0, "off the formula"),
    "another rank": (lambda a, b: (a[:1], b[:, :1]), 1.0, "has the shapes"),
    "left out": (lambda a, b: None, 1.0, "is missing"),
    "another alpha": (lambda a, b: (a, b), 2.0, "alpha is 4.0, where 2.0 must be"),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_the_certificate_sees_a_wrong_adapter(llama, tmp_path, mutation):
    change, factor, said = MUTATIONS[mutation]
    plan = mixed_plan(llama)
    out = export_gguf(llama, plan, tmp_path / "out")
    lora = read_lora(out / ADAPTER_FILE)
    modules = {"attn_output": "self_attn.o_proj", "ffn_down": "mlp.down_proj"}
    pairs = []
    for index, (name, factors) in enumerate(lora.pairs.items()):
        changed = change(*factors) if index == 0 else factors
        if changed is not None:
            _, layer, kind, _ = name.split(".")
            pairs.append(LoraPair(f"model.layers.{layer}.{modules[kind]}", *changed))
    write_lora(out / ADAPTER_FILE, llama.architecture, llama.config, pairs, alpha=factor * lora.alpha)
    certificate = certify_gguf(llama, plan, out)
    assert certificate.verdict == "failed"
    (reason,) = certificate.reasons
    assert said in reason


def test_the_certificate_sees_a_wrong_vector(llama, tmp_path):
    plan = mixed_plan(llama)
    out = export_gguf(llama, plan, tmp_path / "out")
    file = out / CONTROL_VECTOR_FILE
    (shift,) = read_control_vector(file).shifts.values()
    for shifts, said in (({1: shift * np.float32(1.001)}, "off the formula"), ({2: shift}, "direction.1 is missing")):
        write_control_vector(file, llama.architecture, shifts)
        certificate = certify_gguf(llama, plan, out)
        assert certificate.verdict == "failed"
        assert said in certificate.reasons[0]


def test_the_certificate_sees_a_missing_and_a_foreign_file(llama, tmp_path):
    plan = plan_for(llama)
    out = export_gguf(llama, plan, tmp_path / "out")
    write_control_vector(out / CONTROL_VECTOR_FILE, llama.architecture, {1: SHIFT.astype(np.float32)})
    assert any("direction.1 belongs to no edit" in reason for reason in certify_gguf(llama, plan, out).reasons)
    (out / CONTROL_VECTOR_FILE).unlink()
    assert certify_gguf(llama, plan, out).verdict == "passed"
    (out / ADAPTER_FILE).unlink()
    assert any("is missing" in reason for reason in certify_gguf(llama, plan, out).reasons)


def test_a_pair_of_zeros_is_inconclusive(llama, tmp_path):
    plan = plan_of(llama, Edit(Site("mlp_write", 1), LEFT, RIGHT, strength=0.0))
    assert certify_gguf(llama, plan, export_gguf(llama, plan, tmp_path / "out")).verdict == "inconclusive"


def test_the_size_is_known_before(llama, tmp_path):
    plan, exporter = mixed_plan(llama), GgufExporter()
    needed = exporter.bytes_needed(llama, lower(plan, llama, exporter), ExportSettings())
    out = export_gguf(llama, plan, tmp_path / "out")
    assert sum(file.stat().st_size for file in out.iterdir()) <= needed <= 2**20


def test_it_is_not_loaded_into_transformers(llama, tmp_path):
    plan, exporter = plan_for(llama), GgufExporter()
    with pytest.raises(BadInputError, match=r"llama\.cpp runs"):
        exporter.reload(llama, tmp_path, lower(plan, llama, exporter), device="cpu", trust_remote_code=False)


def test_neither_torch_nor_transformers_is_imported(tiny_folder):
    code = f"""
import sys
import numpy as np
from pathlib import Path
from alignez_bake.edit import Edit
from alignez_bake.edit_plan import EditPlan
from alignez_bake.exporters.gguf import GgufExporter
from alignez_bake.exporters.protocol import ExportSettings
from alignez_bake.lowering.lower import lower
from alignez_bake.model_folder import open_model_folder
base = open_model_folder(Path({str(tiny_folder("llama"))!r}))
plan = EditPlan((), base=base.fingerprint)
GgufExporter().check(base, lower(plan, base, GgufExporter()), ExportSettings())
found = {{"torch", "transformers"}} & set(sys.modules)
assert "gguf" in sys.modules
sys.exit(f"imported {{found}}" if found else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_head_is_called_output(llama, tmp_path):
    slot = find_slot(llama, Site("lm_head"))
    assert export_and_check(llama, edit_for_slot(slot, reads="input"), tmp_path / "out") == ["output.weight"]


def export_and_check(base, edit, out):
    plan = plan_of(base, edit)
    export_gguf(base, plan, out)
    assert certify_gguf(base, plan, out).verdict == "passed"
    return list(read_lora(out / ADAPTER_FILE).pairs)
