"""End to end: llama.cpp with our adapter and control vector computes what the hooked transformers model computes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from alignez_bake.exporters.gguf_files import (
    ADAPTER_FILE,
    CONTROL_VECTOR_FILE,
    LoraPair,
    read_control_vector,
    read_lora,
    write_control_vector,
    write_lora,
)
from transformers import AutoModelForCausalLM

from alignez_bake.edit import Edit
from alignez_bake.edit_plan import EditPlan
from alignez_bake.lowering.hooks import edited_by_hooks
from alignez_bake.model_folder import open_model_folder
from alignez_bake.site import Site
from tests.baking import plan_for
from tests.exporters.gguf_artefacts import certify_gguf, export_gguf

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: docs/gguf.md says how these tests run")

from tests.exporters.llama_gguf import llama_cpp_logits, write_model

DEMO = Path(__file__).parents[2] / "examples" / "demo" / "base"
MODEL_TYPES = ("llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma2", "phi3", "gpt2", "gpt_neox")

FP32_TOLERANCE = 1e-5
# llama.cpp looks GELU up in a table of float16 by a float16 argument: two roundings of at most 2⁻¹¹ each.
GELU_TOLERANCE = 2.0**-10
GELU_TYPES = ("gemma2", "gpt2", "gpt_neox")


class Subject:
    """A base in both worlds, and the tokens that both run."""

    def __init__(self, folder, gguf):
        self.base = open_model_folder(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.gguf = write_model(self.model, gguf)
        self.tolerance = GELU_TOLERANCE if self.base.architecture.model_type in GELU_TYPES else FP32_TOLERANCE
        vocabulary = self.model.config.vocab_size
        self.ids = torch.randint(3, vocabulary, (1, 23), generator=torch.Generator().manual_seed(5))
        self.unedited = self.transformers()

    def transformers(self, plan=None):
        with torch.no_grad():
            if plan is None:
                return self.model(self.ids).logits[0].numpy()
            with edited_by_hooks(self.model, self.base.architecture, plan):
                return self.model(self.ids).logits[0].numpy()

    def llama_cpp(self, out=None):
        adapter = vector = None
        if out is not None:
            adapter = out / ADAPTER_FILE if (out / ADAPTER_FILE).exists() else None
            vector = out / CONTROL_VECTOR_FILE if (out / CONTROL_VECTOR_FILE).exists() else None
            assert adapter or vector
        return llama_cpp_logits(self.gguf, self.ids[0].tolist(), adapter=adapter, control_vector=vector)

    def check(self, plan, out):
        """The files of a plan do what its hooks do, and that is far from nothing."""
        export_gguf(self.base, plan, out)
        assert certify_gguf(self.base, plan, out).verdict == "passed"
        hooked, found = self.transformers(plan), self.llama_cpp(out)
        assert relative(found, hooked) <= self.tolerance
        assert relative(found, self.unedited) >= 100 * self.tolerance


def relative(found, expected):
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.fixture(scope="module")
def subject(tmp_path_factory, tiny_folder):
    made = {}

    def get(model_type):
        if model_type not in made:
            # llama.cpp's gpt_neox has biases everywhere.
            folder = tiny_folder(model_type, True if model_type == "gpt_neox" else None)
            made[model_type] = Subject(folder, tmp_path_factory.mktemp("whole") / f"{model_type}.gguf")
        return made[model_type]

    return get


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return Subject(DEMO, tmp_path_factory.mktemp("demo") / "demo.gguf")


def shifts(base, kind, layers, *, seed=0, scale=1.0):
    rng = np.random.default_rng([seed, 71])
    width = base.config.get("hidden_size", base.config.get("n_embd"))
    return tuple(Edit(Site(kind, layer), bias=scale * rng.normal(size=width)) for layer in layers)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_base_is_the_same_model_in_both(subject, model_type):
    base = subject(model_type)
    assert relative(base.llama_cpp(), base.unedited) <= base.tolerance


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_an_adapter_at_every_site_is_the_hooked_model(subject, model_type, tmp_path):
    base = subject(model_type)
    kinds = [kind for kind in base.base.architecture.sites if kind != "mlp_write" or model_type != "mixtral"]
    base.check(plan_for(base.base, kinds, reads="input"), tmp_path / "out")


@pytest.mark.parametrize("model_type", [name for name in MODEL_TYPES if name not in ("gpt2", "gpt_neox")])
def test_edits_of_the_output_are_the_hooked_model(subject, model_type, tmp_path):
    base = subject(model_type)
    base.check(plan_for(base.base, tuple(base.base.architecture.sites)), tmp_path / "out")


def test_several_edits_of_one_map_with_dials_and_ranks_of_their_own(subject, tmp_path):
    base = subject("llama")
    parts = (
        ("helpful", plan_for(base.base, ("attn_write", "mlp_write"))),
        ("helpful", plan_for(base.base, ("mlp_write",), seed=1)),
        ("humor", plan_for(base.base, ("mlp_write",), reads="input", seed=2)),
    )
    edits = tuple(replace(edit, objective=name) for name, part in parts for edit in part.edits)
    plan = EditPlan(edits, {"helpful": 0.7, "humor": -0.4}, base.base.fingerprint)
    base.check(plan, tmp_path / "out")
    lora = read_lora(tmp_path / "out" / ADAPTER_FILE)
    assert lora.alpha == 6  # three edits of rank 2 at the MLP's writer; the attention's pair is filled up
    assert {a.shape[0] for a, _ in lora.pairs.values()} == {6}


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_shift_of_the_residual_stream_is_the_hooked_model(subject, model_type, tmp_path):
    base = subject(model_type)
    base.check(EditPlan(shifts(base.base, "residual", [1]), base=base.base.fingerprint), tmp_path / "out")
    assert not (tmp_path / "out" / ADAPTER_FILE).exists()


@pytest.mark.parametrize("model_type", [name for name in MODEL_TYPES if name != "gemma2"])
def test_constants_of_the_mlp_writer_go_into_the_vector(subject, model_type, tmp_path):
    base = subject(model_type)
    linear = [edit for edit in plan_for(base.base, ("mlp_write",), constant=True).edits if edit.site.layer == 1]
    both = (*shifts(base.base, "mlp_write", [1]), *linear, *shifts(base.base, "residual", [1], seed=1))
    base.check(EditPlan(both, base=base.base.fingerprint), tmp_path / "out")
    assert sorted(read_control_vector(tmp_path / "out" / CONTROL_VECTOR_FILE).shifts) == [1]


def test_the_demo_model_with_an_adapter(demo, tmp_path):
    assert relative(demo.llama_cpp(), demo.unedited) <= FP32_TOLERANCE
    demo.check(plan_for(demo.base, ("attn_write", "mlp_write", "mlp_gate"), scale=0.2), tmp_path / "out")


def test_the_demo_model_with_a_control_vector(demo, tmp_path):
    plan = EditPlan(shifts(demo.base, "residual", range(1, 6), scale=0.3), base=demo.base.fingerprint)
    demo.check(plan, tmp_path / "out")


def test_a_vector_one_layer_off_is_seen(demo, tmp_path):
    plan = EditPlan(shifts(demo.base, "residual", range(1, 5), scale=0.3), base=demo.base.fingerprint)
    out = export_gguf(demo.base, plan, tmp_path / "out")
    file = out / CONTROL_VECTOR_FILE
    moved = {layer + 1: shift for layer, shift in read_control_vector(file).shifts.items()}
    write_control_vector(file, demo.base.architecture, moved)
    assert relative(demo.llama_cpp(out), demo.transformers(plan)) >= 100 * FP32_TOLERANCE


@pytest.mark.parametrize("mutation", ["alpha", "layer"])
def test_a_wrong_adapter_is_seen(demo, tmp_path, mutation):
    plan = plan_for(demo.base, ("attn_write",), scale=0.2)
    out = export_gguf(demo.base, plan, tmp_path / "out")
    lora = read_lora(out / ADAPTER_FILE)
    pairs = [
        LoraPair(f"model.layers.{layer}.self_attn.o_proj", *lora.pairs[f"blk.{layer}.attn_output.weight"])
        for layer in range(demo.base.num_layers)
    ]
    alpha = lora.alpha
    if mutation == "alpha":
        alpha *= 1.1
    else:
        pairs[2], pairs[3] = replace(pairs[2], module=pairs[3].module), replace(pairs[3], module=pairs[2].module)
    write_lora(out / ADAPTER_FILE, demo.base.architecture, demo.base.config, pairs, alpha=alpha)
    assert relative(demo.llama_cpp(out), demo.transformers(plan)) >= 100 * FP32_TOLERANCE
    assert certify_gguf(demo.base, plan, out).verdict == "failed"
