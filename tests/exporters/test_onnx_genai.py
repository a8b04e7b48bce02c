"""A folder for onnxruntime-genai: built from the folded checkpoint, certified by its own runtime."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx_ir
import pytest
import torch
from alignez_bake.exporters.baked_model import baked_checkpoint, load_baked
from alignez_bake.exporters.onnx_genai import OnnxGenaiExporter
from alignez_bake.exporters.onnx_genai_running import open_genai
from alignez_bake.exporters.protocol import ExportSettings

from alignez_bake.edit_plan import EditPlan
from alignez_bake.errors import BadInputError
from alignez_bake.lowering.lower import lower
from alignez_bake.model_folder import open_model_folder
from alignez_bake.progress import NoProgress
from tests.baking import plan_for
from tests.onnx_export.graphs import Torch, greedy
from tests.tiny_models import EOS_ID, save_tiny

if TYPE_CHECKING:
    from pathlib import Path

    from alignez_bake.lowering.decide import Lowering
    from alignez_bake.model_folder import ModelFolder

TOKENS = 64
SIZES = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 96}
HEADS = {"head_dim": 32}
WITH_HEAD_DIM = ("llama", "qwen3", "mistral", "gemma2")
OTHERS = ("qwen2", "qwen3", "mistral", "gemma2", "phi3", "granite")
EXPORTER = OnnxGenaiExporter()


class Made(NamedTuple):
    """A base, what is done to it, and the folder that comes of it."""

    base: ModelFolder
    lowering: Lowering
    out: Path


def base_of(model_type: str, folder: Path, **settings) -> ModelFolder:
    overrides = SIZES | (HEADS if model_type in WITH_HEAD_DIM else {})
    return open_model_folder(save_tiny(model_type, folder, overrides=overrides, **settings))


def made(base: ModelFolder, plan: EditPlan, out: Path) -> Made:
    lowering = lower(plan, base, EXPORTER)
    (out / "alignez").mkdir(parents=True)
    (out / "alignez" / "alignez.json").write_text("{}")
    EXPORTER.check(base, lowering, ExportSettings())
    EXPORTER.export(base, lowering, out, ExportSettings(), NoProgress())
    return Made(base, lowering, out)


def certified(result: Made):
    folder = EXPORTER.reload(result.base, result.out, result.lowering, device="cpu", trust_remote_code=False)
    return folder.certify(NoProgress())


def tensors_of(result: Made):
    return EXPORTER.certify_tensors(result.base, result.lowering, result.out, NoProgress())


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Made:
    folder = tmp_path_factory.mktemp("genai")
    base = base_of("llama", folder / "base")
    return made(base, plan_for(base, ("attn_write", "mlp_write")), folder / "out")


def test_it_gives_what_hooked_base_and_baked_model_give(llama):
    certificate = certified(llama)
    assert certificate.reasons == ()
    assert certificate.verdict == "passed"
    assert {(entry.batch_size, entry.cache) for entry in certificate.comparisons} == {(1, "empty"), (4, "empty")}
    assert all(entry.moved >= 100 * entry.bound_to_baked_model for entry in certificate.comparisons)
    assert all(found.equal == found.prompts for found in certificate.greedy)
    assert certificate.greedy_tokens == TOKENS
    assert certificate.to_json()["runtime"] == "onnxruntime-genai"


@pytest.mark.parametrize("rows", [1, 4])
def test_users_generate_the_baked_models_tokens(llama, rows):
    """As its own examples do, without anything of ours but the folder."""
    import onnxruntime_genai

    from alignez_bake.language_model.batching import left_padded

    prompts = np.random.default_rng(rows).integers(3, 320, size=(rows, 9)).astype(np.int32)
    model = onnxruntime_genai.Model(str(llama.out))
    parameters = onnxruntime_genai.GeneratorParams(model)
    parameters.set_search_options(max_length=9 + TOKENS, batch_size=rows, do_sample=False)
    generator = onnxruntime_genai.Generator(model, parameters)
    generator.append_tokens(prompts)
    while not generator.is_done():
        generator.generate_next_token()
    with baked_checkpoint(llama.base, llama.lowering, llama.out.parent, dtype=None, progress=NoProgress()) as folder:
        baked = load_baked(llama.base, llama.lowering, folder, device="cpu").model
        tokens, _ = greedy(Torch(baked), left_padded(prompts.tolist(), 2), TOKENS)
    for row, expected in enumerate(tokens.tolist()):
        end = expected.index(EOS_ID) if EOS_ID in expected else TOKENS
        found = generator.get_sequence(row)[9:].tolist()
        assert found[:end] == expected[:end]
        assert len(found) == TOKENS or end < TOKENS


def test_its_tensors_are_the_baked_ones(llama):
    certificate = tensors_of(llama)
    assert certificate.verdict == "passed"
    assert len(certificate.deliveries) == 4
    assert certificate.untouched == 17
    assert not certificate.not_comparable
    assert not certificate.large_others


def test_another_model_fails_both_levels(llama):
    """The same folder, certified for other strengths."""
    plan = llama.lowering.plan
    others = EditPlan(tuple(replace(edit, strength=1.01) for edit in plan.edits), base=plan.base)
    other = Made(llama.base, lower(others, llama.base, EXPORTER), llama.out)
    certificate = certified(other)
    assert certificate.verdict == "failed"
    assert any("logits differ from those of the baked model" in reason for reason in certificate.reasons)
    tensors = tensors_of(other)
    assert tensors.verdict == "failed"
    assert any(reason.startswith("model.layers.0.mlp.down_proj.weight, which") for reason in tensors.reasons)


def test_a_changed_weight_of_the_graph_fails_both_levels(llama, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for name in ("genai_config.json", "tokenizer.json", "tokenizer_config.json"):
        (out / name).write_bytes((llama.out / name).read_bytes())
    model = onnx_ir.load(llama.out / "model.onnx")
    value = model.graph.initializers["model.layers.1.attn.o_proj.MatMul.weight"]
    value.const_value = onnx_ir.tensor(value.const_value.numpy() * np.float32(1.01), name=value.name)
    onnx_ir.save(model, out / "model.onnx", external_data="model.onnx.data")
    (out / "alignez").mkdir()
    (out / "alignez" / "alignez.json").write_text("{}")
    changed = Made(llama.base, llama.lowering, out)
    assert certified(changed).verdict == "failed"
    (reason,) = tensors_of(changed).reasons
    assert reason.startswith("model.layers.1.self_attn.o_proj.weight, which the edits change, is not in the graph")


def test_it_answers(llama):
    result = EXPORTER.reload(llama.base, llama.out, llama.lowering, device="cpu", trust_remote_code=False)
    settings = {"max_new_tokens": 5, "batch_size": 8, "seed": 0, "progress": None}
    contexts = [[5, 6, 7], [9]]
    answers = result.answering().continued(contexts, temperature=0.0, **settings)
    assert all(1 <= len(answer) <= 5 for answer in answers)
    assert answers == [result.model.generate([context], new_tokens=5)[0] for context in contexts]
    sampled = result.answering().continued(contexts, temperature=1.0, **settings)
    assert sampled == result.answering().continued(contexts, temperature=1.0, **settings)
    with pytest.raises(BadInputError, match="256 positions"):
        result.answering().continued([[5] * 255], temperature=0.0, **settings)


def test_prompts_of_several_lengths_are_no_batch(llama):
    with pytest.raises(BadInputError, match=r"prompts of \[1, 2\] tokens in one batch"):
        open_genai(llama.out).logits([[5], [6, 7]])


def test_inserts_are_refused_by_name(llama):
    gated = EditPlan(tuple(replace(edit, gate="relu") for edit in llama.lowering.plan.edits), base=None)
    with pytest.raises(BadInputError, match="relu"):
        lower(gated, llama.base, EXPORTER).require_complete()


@pytest.mark.parametrize(
    ("model_type", "overrides", "message"),
    [
        ("gpt2", {}, "no graph of GPT2LMHeadModel that was proved.*use --as onnx"),
        ("llama", {"head_dim": 24}, "attention heads of width 24: .* a multiple of 16; use --as onnx"),
    ],
)
def test_models_that_the_builder_cannot_take_are_refused(model_type, overrides, message, tmp_path):
    base = open_model_folder(save_tiny(model_type, tmp_path / "base", overrides=overrides))
    lowering = lower(plan_for(base), base, EXPORTER)
    with pytest.raises(BadInputError, match=message):
        EXPORTER.check(base, lowering, ExportSettings())


def test_half_precision_is_refused(llama):
    with pytest.raises(BadInputError, match="leave --dtype float16 out, or use --as onnx"):
        EXPORTER.check(llama.base, llama.lowering, ExportSettings("float16"))


def test_devices_without_a_graph_are_refused(llama):
    with pytest.raises(BadInputError, match="--device cuda: graphs of --as onnx-genai are built for the CPU"):
        EXPORTER.reload(llama.base, llama.out, llama.lowering, device="cuda", trust_remote_code=False)


def test_a_missing_package_is_named(llama, monkeypatch):
    from alignez_bake.exporters import required_packages

    monkeypatch.setattr(required_packages, "find_spec", lambda name: None if name == "onnxruntime_genai" else name)
    with pytest.raises(BadInputError, match=r"\(onnxruntime_genai\): pip install 'alignez-bake\[genai,cpu\]'"):
        EXPORTER.check(llama.base, llama.lowering, ExportSettings())


def test_what_the_builder_says_when_it_fails_is_the_error(tmp_path):
    from alignez_bake.exporters.onnx_genai_builder import build

    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "out").mkdir()
    with pytest.raises(BadInputError, match=r"onnxruntime-genai's builder made no graph \(.+\): use --as onnx"):
        build(tmp_path / "checkpoint", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("model_type", "settings", "plan"),
    [
        ("qwen2", {}, {"kinds": ("mlp_write",), "constant": True}),  # re-homed: builder's llama with biases
        ("llama", {"bias": True}, {"kinds": ("attn_write", "mlp_write"), "constant": True}),
        ("llama", {"dtype": torch.bfloat16}, {"kinds": ("attn_write",)}),
        ("llama", {}, {"kinds": ("mlp_gate",)}),
        *(
            (name, {}, {"kinds": ("attn_write",)})
            for name in ("qwen2", "qwen3", "mistral", "gemma2", "phi3", "granite")
        ),
    ],
)
def test_other_models_and_edits(model_type, settings, plan, tmp_path):
    base = base_of(model_type, tmp_path / "base", **settings)
    result = made(base, plan_for(base, **plan), tmp_path / "out")
    certificate = certified(result)
    assert certificate.reasons == ()
    assert certificate.verdict == "passed"
    assert tensors_of(result).verdict == "passed"
