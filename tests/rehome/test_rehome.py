"""An equivalent base computes what the base computes, as a model that plain `from_pretrained` loads."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from alignez_bake.edit_plan import EditPlan
from alignez_bake.errors import BadInputError
from alignez_bake.low_rank import low_rank
from alignez_bake.lowering.decide import Refusal
from alignez_bake.lowering.hooks import edited_by_hooks
from alignez_bake.lowering.slot import find_slot
from alignez_bake.model_folder import open_model_folder
from alignez_bake.rehome.growth import grown_size
from alignez_bake.rehome.rehome import rehome
from alignez_bake.site import Site
from tests.baking import rewrite_names
from tests.random_edits import edit_for_slot
from tests.rehome.rehoming import FP32_END, MARGIN, logits_of, write_folder
from tests.running import load, relative

ATTN, MLP = Site("attn_write", 0), Site("mlp_write", 1)
BIASES = [
    # model type, sites, the type of the equivalent, tensors added
    ("llama", [ATTN], "llama", 8),
    ("llama", [MLP], "llama", 6),
    ("llama", [ATTN, MLP], "llama", 14),
    ("qwen3", [ATTN], "qwen3", 8),
    ("gemma2", [ATTN], "gemma2", 8),
    ("gemma3_text", [ATTN], "gemma3_text", 8),
    ("olmo2", [ATTN], "olmo2", 8),
    ("smollm3", [ATTN, MLP], "smollm3", 14),
    ("granite", [ATTN, MLP], "granite", 14),
    ("gpt_neox", [ATTN], "gpt_neox", 4),
    ("opt", [MLP], "opt", 12),
    ("mistral", [ATTN], "llama", 8),
    ("mistral", [ATTN, MLP], "llama", 14),
    ("qwen2", [ATTN], "llama", 2),
    ("qwen2", [MLP], "llama", 8),
]


@pytest.mark.parametrize(("model_type", "sites", "new_type", "added"), BIASES)
def test_zero_biases_change_nothing_at_all(model_type, sites, new_type, added, tmp_path, tiny_folder):
    base = open_model_folder(tiny_folder(model_type))
    rehomed = rehome(base, bias_sites=sites)
    assert rehomed.config["model_type"] == rehomed.architecture.model_type == new_type
    assert len(rehomed.tensors) == len(base.tensors) + added
    assert all(rehomed.tensors.is_base(name) for name in base.tensors)
    for site in sites:
        for layer in range(base.num_layers):
            slot = find_slot(rehomed, Site(site.kind, layer))
            assert slot.bias is not None
            assert rehomed.tensors.file_of(slot.bias) == rehomed.tensors.file_of(slot.weight)
            assert not rehomed.tensors.read(slot.bias).any()
    assert torch.equal(logits_of(write_folder(base, rehomed, tmp_path / "out")), logits_of(base.path))


UNITS = [
    ("llama", None),
    ("mistral", None),
    ("qwen2", None),
    ("smollm3", None),
    ("smollm3", True),
    ("granite", None),
    ("granite", True),
    ("gpt2", None),
    ("gpt_neox", False),
    ("opt", False),
    ("opt", True),
]


@pytest.mark.parametrize(("model_type", "bias"), UNITS)
def test_added_units_of_zeros_change_nothing_but_the_order_of_summation(model_type, bias, tmp_path, tiny_folder):
    base = open_model_folder(tiny_folder(model_type, bias))
    rehomed = rehome(base, units={1: 3})
    size = {"opt": "ffn_dim", "gpt2": "n_inner"}.get(model_type, "intermediate_size")
    assert (base.config[size], rehomed.config[size]) == (64, 128)
    written = write_folder(base, rehomed, tmp_path / "out")
    assert relative(logits_of(written), logits_of(base.path)) <= FP32_END
    assert load(written, torch.float32).num_parameters() > load(base.path, torch.float32).num_parameters()


def test_the_default_size_of_gpt2_is_written_out(tmp_path, save_tiny):
    base = open_model_folder(save_tiny("gpt2", tmp_path / "base", overrides={"n_inner": None}))
    assert base.config["n_inner"] is None
    rehomed = rehome(base, units={0: 1})
    assert rehomed.config["n_inner"] == 256
    assert relative(logits_of(write_folder(base, rehomed, tmp_path / "out")), logits_of(base.path)) <= FP32_END


@pytest.mark.parametrize(
    ("size", "count", "expected"),
    [
        (14336, 1, 14592),
        (14336, 257, 14848),
        (432, 4, 448),
        (432, 17, 464),
        (64, 64, 128),
        (100, 1, 104),
        (683, 2, 685),
    ],
)
def test_the_new_size_is_as_divisible_as_the_old_one(size, count, expected):
    assert grown_size(size, count) == expected


@pytest.mark.parametrize("max_shard_size", ["5GB", "20KB"])
def test_biases_and_units_together_over_several_files(max_shard_size, tmp_path, save_tiny):
    folder = save_tiny("mistral", tmp_path / "base", dtype=torch.bfloat16, max_shard_size=max_shard_size)
    base = open_model_folder(folder)
    rehomed = rehome(base, bias_sites=[ATTN], units={0: 2})
    assert rehomed.tensors.files == base.tensors.files
    assert {rehomed.tensors.entry(name).dtype for name in rehomed.tensors} == {"BF16"}
    assert {rehomed.tensors.file_of(name) for name in rehomed.tensors} == set(base.tensors.files)
    assert rehomed.config["attention_bias"] is rehomed.config["mlp_bias"] is True
    written = write_folder(base, rehomed, tmp_path / "out")
    assert relative(logits_of(written), logits_of(folder)) <= FP32_END


def test_files_without_the_prefix_keep_their_names(tmp_path, save_tiny):
    from tests.baking import rewrite_names

    folder = save_tiny("gpt2", tmp_path / "base")
    rewrite_names(folder, lambda tensors: {name.removeprefix("transformer."): tensors[name] for name in tensors})
    base = open_model_folder(folder)
    rehomed = rehome(base, units={1: 5})
    assert not rehomed.tensors.is_base("h.1.mlp.c_fc.weight")
    written = write_folder(base, rehomed, tmp_path / "out")
    assert relative(logits_of(written), logits_of(folder)) <= FP32_END


def test_the_demo_model_grows_to_a_multiple_of_16(tmp_path):
    base = open_model_folder(Path(__file__).parents[2] / "examples" / "demo" / "base")
    rehomed = rehome(base, units={3: 8})
    assert (base.config["intermediate_size"], rehomed.config["intermediate_size"]) == (432, 448)
    written = write_folder(base, rehomed, tmp_path / "out")
    assert relative(logits_of(written), logits_of(base.path)) <= FP32_END


def test_tied_heads_stay_tied(tmp_path, save_tiny):
    base = open_model_folder(save_tiny("qwen2", tmp_path / "base", overrides={"tie_word_embeddings": True}))
    rehomed = rehome(base, bias_sites=[ATTN])
    assert rehomed.config["tie_word_embeddings"] is True
    assert torch.equal(logits_of(write_folder(base, rehomed, tmp_path / "out")), logits_of(base.path))


ROPE = [
    {"rope_theta": 1e6},
    {"rope_theta": 500.0, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
    {"rope_parameters": {"rope_type": "linear", "rope_theta": 700.0, "factor": 2.0}},
    {},
]


@pytest.mark.parametrize("model_type", ["mistral", "qwen2"])
@pytest.mark.parametrize("spelling", ROPE)
def test_rotary_positions_of_both_spellings_stay(model_type, spelling, tmp_path, save_tiny):
    folder = save_tiny(model_type, tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    usual = logits_of(folder)
    del config["rope_parameters"]
    (folder / "config.json").write_text(json.dumps({**config, **spelling}))
    base = open_model_folder(folder)
    expected = logits_of(folder, 24)
    if spelling and "type" not in spelling.get("rope_scaling", {}):  # dynamic scaling acts beyond the context alone
        assert relative(usual, expected) > MARGIN * FP32_END
    assert torch.equal(logits_of(write_folder(base, rehome(base, bias_sites=[ATTN]), tmp_path / "out")), expected)


@pytest.mark.parametrize("model_type", ["mistral", "qwen2"])
def test_absent_entries_mean_the_source_types_defaults(model_type, tmp_path, save_tiny):
    """The smallest config.json: whatever is left out has another default in llama's class, or might get one."""
    folder = save_tiny(model_type, tmp_path / "base", overrides={"rms_norm_eps": 1e-6})
    config = json.loads((folder / "config.json").read_text())
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
             "num_key_value_heads", "head_dim", "model_type", "architectures", "sliding_window")  # fmt: skip
    (folder / "config.json").write_text(json.dumps({name: config[name] for name in sizes if name in config}))
    base = open_model_folder(folder)
    rehomed = rehome(base, bias_sites=[ATTN])
    written = load(write_folder(base, rehomed, tmp_path / "out"), torch.float32)
    assert torch.equal(logits_of(written), logits_of(folder))
    original = load(folder, torch.float32).config
    for entry in ("max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id", "rms_norm_eps"):
        assert getattr(written.config, entry) == getattr(original, entry)


def windowed(folder, **entries):
    config = json.loads((folder / "config.json").read_text())
    config.pop("sliding_window", None)
    config.pop("layer_types", None)
    (folder / "config.json").write_text(json.dumps({**config, **entries}))
    return open_model_folder(folder)


def test_a_live_sliding_window_makes_a_difference_and_is_refused(tmp_path, save_tiny):
    base = windowed(save_tiny("mistral", tmp_path / "base"), sliding_window=4)
    refusal = rehome(base, bias_sites=[ATTN])
    assert isinstance(refusal, Refusal)
    assert "sliding_window = 4, a window that acts within the context of 256 tokens" in refusal.reason
    # What would have been made is another model.
    without = rehome(windowed(save_tiny("mistral", tmp_path / "none"), sliding_window=None), bias_sites=[ATTN])
    wrong = logits_of(write_folder(base, without, tmp_path / "out"))
    assert relative(wrong, logits_of(base.path)) > 1000 * FP32_END


@pytest.mark.parametrize("model_type", ["mistral"])
def test_an_absent_sliding_window_is_the_default_of_4096(model_type, tmp_path, save_tiny):
    base = windowed(save_tiny(model_type, tmp_path / "base"))
    assert rehome(base, bias_sites=[ATTN]).config["model_type"] == "llama"  # idle in 256 tokens
    longer = windowed(base.path, max_position_embeddings=8192)
    assert "sliding_window = 4096 (by default: the entry is absent)" in rehome(longer, bias_sites=[ATTN]).reason


@pytest.mark.parametrize("window", [256, 300])
def test_a_window_as_long_as_the_context_never_acts(window, tmp_path, save_tiny):
    base = windowed(save_tiny("mistral", tmp_path / "base"), sliding_window=window)
    written = write_folder(base, rehome(base, bias_sites=[ATTN]), tmp_path / "out")
    assert torch.equal(logits_of(written, 256), logits_of(base.path, 256))


def test_the_window_that_qwen2_uses_makes_a_difference_and_is_refused(tmp_path, save_tiny):
    base = windowed(
        save_tiny("qwen2", tmp_path / "base"), use_sliding_window=True, sliding_window=4, max_window_layers=0
    )
    unwindowed = windowed(save_tiny("qwen2", tmp_path / "none"), sliding_window=4)
    assert relative(logits_of(unwindowed.path), logits_of(base.path)) > 1000 * FP32_END
    assert "use_sliding_window = true, which it would ignore" in rehome(base, bias_sites=[ATTN]).reason
    assert torch.equal(
        logits_of(write_folder(unwindowed, rehome(unwindowed, bias_sites=[ATTN]), tmp_path / "out")),
        logits_of(unwindowed.path),
    )


REFUSED = [
    (
        "phi3",
        {"bias_sites": [ATTN]},
        "phi3 model has no switch for a bias of self_attn.o_proj: its maps have no biases",
    ),
    ("phi3", {"units": {0: 1}}, "no biases in its gated MLP"),
    ("qwen3", {"bias_sites": [MLP]}, "no switch for a bias of mlp.down_proj.*norms of q and k"),
    ("qwen3", {"units": {0: 1}}, "no biases in its gated MLP.*norms of q and k"),
    ("gemma2", {"units": {1: 4}}, "no biases in its gated MLP.*soft caps"),
    ("gemma3_text", {"bias_sites": [MLP]}, "no switch for a bias of mlp.down_proj.*norms of q and k"),
    ("gemma3_text", {"units": {1: 4}}, "no biases in its gated MLP.*norms of q and k"),
    ("olmo2", {"bias_sites": [MLP]}, "no switch for a bias of mlp.down_proj.*after the writers"),
    ("olmo2", {"units": {1: 4}}, "no biases in its gated MLP.*after the writers"),
    ("mixtral", {"bias_sites": [ATTN]}, "no equivalent with more places is known of a mixtral model"),
]


@pytest.mark.parametrize(("model_type", "wanted", "reason"), REFUSED)
def test_what_has_no_exact_equivalent_is_refused_with_its_reason(model_type, wanted, reason, tiny_folder):
    refusal = rehome(open_model_folder(tiny_folder(model_type)), **wanted)
    assert isinstance(refusal, Refusal)
    assert re.search(reason, refusal.reason)


@pytest.mark.parametrize("entry", [{"logit_scale": 2.0}, {"auto_map": {}}, {"per_layer_config": {}}])
def test_an_entry_that_could_matter_is_refused_by_name(entry, tmp_path, save_tiny):
    base = windowed(save_tiny("mistral", tmp_path / "base"), sliding_window=None, **entry)
    assert f"config.json has {next(iter(entry))}" in rehome(base, bias_sites=[ATTN]).reason


def test_heads_that_llama_would_not_load_are_refused(tmp_path, save_tiny):
    base = windowed(save_tiny("mistral", tmp_path / "base"), sliding_window=None, num_attention_heads=3)
    assert "must be a multiple of num_attention_heads, not 32, 3" in rehome(base, bias_sites=[ATTN]).reason


def test_layers_of_different_sizes_are_refused(tmp_path, save_tiny):
    from alignez_bake.safetensors_io.writer import write_tensors

    base = open_model_folder(save_tiny("llama", tmp_path / "base"))
    values = {name: base.tensors.read(name) for name in base.tensors}
    for name in ("gate", "up"):
        values[f"model.layers.1.mlp.{name}_proj.weight"] = np.zeros((32, 32), np.float32)
    values["model.layers.1.mlp.down_proj.weight"] = np.zeros((32, 32), np.float32)
    write_tensors(base.path / "model.safetensors", values, {"format": "pt"})
    assert "different sizes (32, 64)" in rehome(open_model_folder(base.path), units={0: 1}).reason


def test_what_the_base_has_already_is_the_base(tiny_folder):
    for model_type, bias in (("llama", True), ("gpt2", None)):
        base = open_model_folder(tiny_folder(model_type, bias))
        assert rehome(base, bias_sites=[ATTN, MLP]) is base
    assert rehome(base) is base


@pytest.mark.parametrize(
    "wanted", [{"bias_sites": [Site("attn_write", 2)]}, {"units": {2: 1}}, {"units": {0: 0}}, {"units": {0: -4}}]
)
def test_what_the_base_lacks_is_bad_input(wanted, tiny_folder):
    with pytest.raises(BadInputError):
        rehome(open_model_folder(tiny_folder("llama")), **wanted)


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "mistral"])
def test_the_ordinary_fold_of_a_constant_works_on_the_equivalent(model_type, tmp_path, tiny_folder):
    base = open_model_folder(tiny_folder(model_type))
    sites = [Site(kind, layer) for kind in ("attn_write", "mlp_write") for layer in range(2)]
    rehomed = rehome(base, bias_sites=sites)
    edits = tuple(edit_for_slot(find_slot(rehomed, site), constant=True) for site in sites)
    plan, values = EditPlan(edits), {}
    for site in sites:
        slot = find_slot(rehomed, site)
        weight, bias = (rehomed.tensors.read(name).astype(np.float64) for name in (slot.weight, slot.bias))
        change = low_rank(plan.groups_at(site), weight, bias)
        values[slot.weight] = weight + change.b_matrix @ change.a_matrix
        values[slot.bias] = bias + change.delta_bias
    written = write_folder(base, rehomed, tmp_path / "out", values)
    original = load(base.path, torch.float32)
    unedited = logits_of(original)
    with edited_by_hooks(original, base.architecture, plan):
        hooked = logits_of(original)
    assert relative(unedited, hooked) > MARGIN * FP32_END
    assert relative(logits_of(written), hooked) <= FP32_END


@pytest.mark.parametrize("wanted", [{"bias_sites": [ATTN]}, {"bias_sites": [MLP], "units": {0: 1}}])
def test_a_switch_is_not_turned_on_over_a_bias_that_was_idle(wanted, tmp_path, save_tiny):
    folder = save_tiny("llama", tmp_path)
    idle = (
        "model.layers.1.self_attn.q_proj.bias"
        if wanted == {"bias_sites": [ATTN]}
        else "model.layers.1.mlp.up_proj.bias"
    )
    rows = open_model_folder(folder).tensors.entry(idle.replace("bias", "weight")).shape[0]
    rewrite_names(folder, lambda tensors: {**tensors, idle: np.ones(rows, np.float32)})
    found = rehome(open_model_folder(folder), **wanted)
    assert isinstance(found, Refusal)
    assert f"its files hold {idle}, which the model does not use" in found.reason
