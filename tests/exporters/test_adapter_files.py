"""What lies in an adapter's folder, what is refused before it is written, and what its check sees."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
from alignez_bake.exporters.adapter import AdapterExporter
from alignez_bake.exporters.adapter_pairs import adapter_bytes
from alignez_bake.exporters.peft_files import CONFIG_FILE, METADATA, WEIGHTS_FILE
from alignez_bake.exporters.protocol import ExportSettings

from alignez_bake.edit import Edit
from alignez_bake.edit_plan import EditPlan
from alignez_bake.errors import BadInputError
from alignez_bake.lowering.lower import lower
from alignez_bake.lowering.slot import find_slot
from alignez_bake.model_folder import open_model_folder
from alignez_bake.progress import NoProgress
from alignez_bake.report.tables import certificate_table
from alignez_bake.safetensors_io.file_access import read_tensor
from alignez_bake.safetensors_io.header import read_header
from alignez_bake.safetensors_io.writer import write_tensors
from alignez_bake.site import LAYERLESS, Site
from tests.baking import contents, plan_for
from tests.random_edits import edit_for_slot, random_edit

EXPORTER = AdapterExporter()
SETTINGS = ExportSettings(base_name="someone/base")


def export(base, plan, out):
    out.mkdir(exist_ok=True)
    lowering = lower(plan, base, EXPORTER)
    EXPORTER.export(base, lowering, out, SETTINGS, NoProgress())
    return lowering


def certify(base, lowering, out):
    return EXPORTER.certify_tensors(base, lowering, out, NoProgress())


def tensors_of(out):
    header = read_header(out / WEIGHTS_FILE)
    return {name: read_tensor(header, entry) for name, entry in header.entries.items()}


def rewrite(out, change):
    """Write the adapter's tensors anew with what `change` makes of all of them."""
    write_tensors(out / WEIGHTS_FILE, change(tensors_of(out)), METADATA)


@pytest.fixture
def llama(tiny_folder):
    return open_model_folder(tiny_folder("llama"))


def test_two_files_with_what_peft_needs_and_the_same_bytes_every_time(llama, tmp_path):
    plan = EditPlan((*plan_for(llama).edits, *plan_for(llama, seed=1).edits[:1]))
    export(llama, plan, tmp_path / "one")
    export(llama, plan, tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert sorted(contents(tmp_path / "one")) == [CONFIG_FILE, WEIGHTS_FILE]
    assert json.loads((tmp_path / "one" / CONFIG_FILE).read_text()) == {
        "base_model_name_or_path": "someone/base",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": 4,
        "lora_bias": False,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": 4,
        "target_modules": ["o_proj"],
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
    assert read_header(tmp_path / "one" / WEIGHTS_FILE).metadata == {"format": "pt"}
    tensors = tensors_of(tmp_path / "one")
    place = "base_model.model.model.layers.{}.self_attn.o_proj.lora_{}.weight"
    assert {name: (values.shape, str(values.dtype)) for name, values in tensors.items()} == {
        place.format(layer, factor): (shape, "float32")
        for layer in (0, 1)
        for factor, shape in (("A", (4, 32)), ("B", (32, 4)))
    }
    # The second layer has one edit of rank 2: the rest of its pair is zero.
    assert tensors[place.format(0, "A")][2:].any(axis=1).all()
    assert not tensors[place.format(1, "A")][2:].any()
    assert not tensors[place.format(1, "B")][:, 2:].any()


def test_a_fused_map_has_rows_of_zeros_where_no_edit_is(tiny_folder, tmp_path):
    phi3 = open_model_folder(tiny_folder("phi3"))
    lowering = export(phi3, plan_for(phi3, ["mlp_gate"]), tmp_path / "out")
    (first, *_), half = (values for name, values in tensors_of(tmp_path / "out").items() if "lora_B" in name), 64
    assert first.shape == (2 * half, 2)
    assert first[:half].all()
    assert not first[half:].any()
    assert certify(phi3, lowering, tmp_path / "out").verdict == "passed"


def test_an_objective_that_is_dialled_to_zero_takes_no_columns(llama, tmp_path):
    edits = tuple(
        replace(edit, objective=name)
        for seed, name in enumerate(("on", "off"))
        for edit in plan_for(llama, seed=seed).edits
    )
    export(llama, EditPlan(edits, {"off": 0.0}), tmp_path / "out")
    export(llama, EditPlan(edits[:2]), tmp_path / "alone")
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")


def test_size_is_known_before_and_small_for_an_8_b_model(llama, tiny_folder, tmp_path):
    for folder, plan in (
        (llama, plan_for(llama, ["attn_write", "mlp_write"])),
        (gpt2 := open_model_folder(tiny_folder("gpt2")), plan_for(gpt2)),
        (mixtral := open_model_folder(tiny_folder("mixtral")), plan_for(mixtral, ["mlp_write"])),
    ):
        out = tmp_path / folder.architecture.model_type
        lowering = export(folder, plan, out)
        found = (out / WEIGHTS_FILE).stat().st_size
        assert found <= EXPORTER.bytes_needed(folder, lowering, SETTINGS) <= 1.5 * found
    hidden, inner, vocabulary, kv, layers = 4096, 14336, 128256, 1024, 32
    layer = 2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * inner + 2 * hidden
    model_bytes = 2 * (layers * layer + 2 * vocabulary * hidden + hidden)
    assert model_bytes == pytest.approx(16.06e9, rel=1e-3)
    adapter = adapter_bytes([(hidden, hidden), (hidden, inner)] * layers, 4)
    assert adapter >= 4 * 4 * layers * (3 * hidden + inner)
    assert adapter < 0.002 * model_bytes


REFUSED = [
    ("llama", "mlp_write", {"gate": "relu"}, "gate 'relu' is not linear"),
    ("llama", "mlp_write", {"positions": "last"}, "only the last position"),
    ("llama", "mlp_write", {"reads": "block"}, "what enters the block"),
    ("llama", "mlp_write", {"bias": np.ones(32)}, "its constant needs a bias"),
    ("llama", "residual", {}, "no tensor of its own"),
    ("llama", "embed", {}, "PEFT wraps an embedding in another way"),
    ("mixtral", "mlp_write", {"bias": np.ones(32)}, "no expert has a bias"),
    ("gpt_oss", "mlp_write", {}, "every expert has a bias, which the edit changes"),
]


@pytest.mark.parametrize(("model_type", "kind", "changes", "reason"), REFUSED)
def test_what_no_pair_can_carry_is_refused_with_its_reason(model_type, kind, changes, reason, tiny_folder, tmp_path):
    base = open_model_folder(tiny_folder(model_type))
    site = Site(kind, None if kind in LAYERLESS else 0)
    width = base.config["hidden_size"]
    edit = replace(random_edit(site, width, width), **changes)
    lowering = lower(EditPlan((edit,)), base, EXPORTER)
    assert [decision.route for decision in lowering.decisions] == ["refuse"]
    assert reason in lowering.decisions[0].reason
    with pytest.raises(BadInputError, match=r"1 of 1 edits cannot be baked as adapter"):
        EXPORTER.check(base, lowering, SETTINGS)
    with pytest.raises(BadInputError, match=r"1 of 1 edits cannot be baked as adapter"):
        EXPORTER.export(base, lowering, tmp_path, SETTINGS, NoProgress())
    assert not contents(tmp_path)


def test_a_constant_beside_a_map_without_bias_is_refused_and_alone_it_is_not(tiny_folder, tmp_path):
    """qwen3 with attention biases: o_proj has one, down_proj has none. Reading o_proj's output reads its bias."""
    qwen3 = open_model_folder(tiny_folder("qwen3", True))
    both = lower(plan_for(qwen3, ["attn_write", "mlp_write"]), qwen3, EXPORTER)
    assert not both.refused
    for place in (EXPORTER.check, EXPORTER.bytes_needed):
        with pytest.raises(BadInputError, match=r"layers\.0\.self_attn\.o_proj have a constant.*layers\.0\.mlp\.down"):
            place(qwen3, both, SETTINGS)
    export(qwen3, plan_for(qwen3, ["attn_write"]), tmp_path / "alone")
    assert json.loads((tmp_path / "alone" / CONFIG_FILE).read_text())["lora_bias"] is True
    # What reads the input has no constant of its own, whatever the bias.
    edits = (*plan_for(qwen3, ["attn_write"], reads="input").edits, *plan_for(qwen3, ["mlp_write"]).edits)
    export(qwen3, EditPlan(edits), tmp_path / "input")
    assert json.loads((tmp_path / "input" / CONFIG_FILE).read_text())["lora_bias"] is False


def test_a_dtype_is_refused_and_float32_is_what_it_has(llama):
    lowering = lower(plan_for(llama), llama, EXPORTER)
    EXPORTER.check(llama, lowering, ExportSettings(dtype="float32"))
    with pytest.raises(BadInputError, match=r"--dtype bfloat16 is not for an adapter"):
        EXPORTER.check(llama, lowering, ExportSettings(dtype="bfloat16"))


@pytest.mark.parametrize(
    ("strength", "message"), [(1e39, "overflow float32 as an adapter"), (1e308, "not finite.*far too large")]
)
def test_values_beyond_float32_are_refused(strength, message, llama, tmp_path):
    edit = edit_for_slot(find_slot(llama, Site("attn_write", 0)))
    large = replace(edit, left=edit.left.astype(np.float64) * 1e3, strength=strength)
    with pytest.raises(BadInputError, match=message):
        export(llama, EditPlan((large,)), tmp_path)
    assert not contents(tmp_path)


def test_experts_of_an_architecture_that_is_not_described_are_refused(tiny_folder, monkeypatch):
    monkeypatch.setattr("alignez_bake.exporters.adapter_pairs.FUSED_EXPERTS", {})
    mixtral = open_model_folder(tiny_folder("mixtral"))
    lowering = lower(plan_for(mixtral, ["mlp_write"]), mixtral, EXPORTER)
    with pytest.raises(BadInputError, match=r"experts of mixtral lie in a live model is not described"):
        EXPORTER.check(mixtral, lowering, SETTINGS)


def first(change):
    """Change one tensor of the file and leave the rest."""

    def of_all(tensors):
        name = next(iter(tensors))
        return {**tensors, name: change(tensors[name])}

    return of_all


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (first(lambda values: values * np.float32(1 + 1e-4)), "off the formula"),
        (first(lambda values: values[::-1]), "off the formula"),
        (first(lambda values: values[:-1]), "is F32 [1, 32], where F32 [2, 32] must be"),
        (first(lambda values: values.astype(np.float16)), "is F16"),
        (lambda tensors: dict(list(tensors.items())[1:]), "1 tensor(s) are missing"),
        (lambda tensors: {**tensors, "lm_head.weight": np.ones(3, np.float32)}, "belong to no edit, such as lm_head"),
    ],
    ids=["scaled", "rows swapped", "another rank", "another dtype", "one missing", "one more"],
)
def test_a_changed_tensor_fails(change, reason, llama, tmp_path):
    lowering = export(llama, plan_for(llama), tmp_path)
    assert certify(llama, lowering, tmp_path).verdict == "passed"
    rewrite(tmp_path, change)
    certificate = certify(llama, lowering, tmp_path)
    assert certificate.verdict == "failed"
    assert any(reason in line for line in certificate.reasons), certificate.reasons


@pytest.mark.parametrize(("key", "value"), [("lora_alpha", 4), ("target_modules", ["q_proj"]), ("rank_pattern", {})])
def test_a_changed_config_fails(key, value, llama, tmp_path):
    lowering = export(llama, plan_for(llama), tmp_path)
    config = json.loads((tmp_path / CONFIG_FILE).read_text())
    for changed, verdict in (({"base_model_name_or_path": "elsewhere"}, "passed"), ({key: value}, "failed")):
        (tmp_path / CONFIG_FILE).write_text(json.dumps(config | changed))
        certificate = certify(llama, lowering, tmp_path)
        assert certificate.verdict == verdict
    assert f"{CONFIG_FILE} is not what the edits ask for in {key}" in certificate.reasons


def test_a_wrong_constant_fails(tiny_folder, tmp_path):
    gpt2 = open_model_folder(tiny_folder("gpt2"))
    lowering = export(gpt2, plan_for(gpt2, constant=True), tmp_path)
    assert certify(gpt2, lowering, tmp_path).verdict == "passed"
    rewrite(tmp_path, lambda tensors: {name: -v if name.endswith("lora_B.bias") else v for name, v in tensors.items()})
    assert certify(gpt2, lowering, tmp_path).verdict == "failed"


def test_edits_that_change_nothing_are_inconclusive(llama, tmp_path):
    lowering = export(llama, plan_for(llama).scaled(0.0), tmp_path)
    certificate = certify(llama, lowering, tmp_path)
    assert certificate.verdict == "inconclusive"
    assert certificate.lowest_share is None
    certificate_table([certificate])


def test_the_certificate_is_json_and_a_table(llama, tmp_path):
    certificate = certify(llama, export(llama, plan_for(llama), tmp_path), tmp_path)
    figures = json.loads(json.dumps(certificate.to_json()))
    assert (figures["edited_tensors"], figures["untouched_tensors"]) == (2, 0)
    assert figures["lowest_delivered_share"] == pytest.approx(1.0, abs=1e-6)
    assert all(entry["error"] <= figures["tolerance"] for entry in figures["tensors"])
    assert certificate_table([certificate]).row_count == 4


def test_a_pure_shift_is_a_constant_alone(tiny_folder, tmp_path):
    gpt2 = open_model_folder(tiny_folder("gpt2"))
    shift = Edit(Site("mlp_write", 1), bias=np.linspace(-1, 1, 32))
    lowering = export(gpt2, EditPlan((shift,)), tmp_path)
    name = "base_model.model.transformer.h.1.mlp.c_proj.lora_B.bias"
    np.testing.assert_array_equal(tensors_of(tmp_path)[name], shift.bias.astype(np.float32))
    assert certify(gpt2, lowering, tmp_path).verdict == "passed"


def test_missing_or_damaged_files_are_named(llama, tmp_path):
    lowering = export(llama, plan_for(llama), tmp_path)
    (tmp_path / CONFIG_FILE).unlink()
    with pytest.raises(BadInputError, match=f"it has no {CONFIG_FILE}"):
        certify(llama, lowering, tmp_path)


def reload(base, out, lowering):
    return EXPORTER.reload(base, out, lowering, device="cpu", trust_remote_code=False).loaded


def test_without_peft_the_extra_is_named(llama, tmp_path, monkeypatch):
    lowering = export(llama, plan_for(llama), tmp_path)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(BadInputError, match=re.escape("pip install 'alignez-bake[adapter]'")):
        reload(llama, tmp_path, lowering)


@pytest.mark.parametrize("foreign", [True, False])
def test_tensors_without_a_place_and_places_without_tensors_are_refused(foreign, llama, tmp_path):
    pytest.importorskip("peft")
    lowering = export(llama, plan_for(llama), tmp_path)
    assert reload(llama, tmp_path, lowering).unused_keys == ()
    added = {"base_model.model.model.layers.0.mlp.down_proj.lora_A.weight": np.ones((2, 64), np.float32)}
    rewrite(tmp_path, lambda tensors: tensors | added if foreign else dict(list(tensors.items())[1:]))
    counts = "0 tensor(s) are missing and 1 found" if foreign else "1 tensor(s) are missing and 0 found"
    with pytest.raises(BadInputError, match=re.escape(counts)):
        reload(llama, tmp_path, lowering)


def test_what_peft_refuses_is_told_in_our_words(llama, tmp_path):
    pytest.importorskip("peft")
    lowering = export(llama, plan_for(llama), tmp_path)
    rewrite(tmp_path, first(lambda values: values[:-1]))
    with pytest.raises(BadInputError, match=r"PEFT [0-9.]+ does not load the adapter"):
        reload(llama, tmp_path, lowering)
