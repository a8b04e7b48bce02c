"""What people do with a model: generate in every way, compile, train, save, move, copy."""

from __future__ import annotations

import copy
import io
import json

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from alignez_bake.lowering.hooks import edited_by_hooks
from alignez_bake.model_folder import open_model_folder
from tests.inserted.plans import mixed_plan
from tests.inserted.saving import load_inserted, save_inserted
from tests.running import relative
from tests.tiny_models import MODEL_TYPES, PAD_ID, VOCABULARY, has_experts

REQUIRED = ("llama", "qwen3", "gpt_neox", "gemma2", "mixtral", "deepseek_v3", "gpt_oss")
TOKENS = 64
CACHES = {
    "dynamic": {},
    "static": {"cache_implementation": "static"},
    "none": {"use_cache": False},
}
IDS = torch.randint(3, VOCABULARY, (4, 13), generator=torch.Generator().manual_seed(5))


class Case:
    """A base, a plan, both as a checkpoint, and the loaded models."""

    def __init__(self, base_path, folder):
        self.base_path, self.folder = base_path, folder
        self.base = open_model_folder(base_path)
        self.plan = mixed_plan(self.base)
        save_inserted(base_path, self.plan, folder)
        self.live = AutoModelForCausalLM.from_pretrained(base_path, dtype=torch.float32).eval()

    def inserted(self, **settings):
        return load_inserted(self.folder, **{"dtype": torch.float32, **settings})

    def hooked(self):
        return edited_by_hooks(self.live, self.base.architecture, self.plan)


@pytest.fixture(scope="module")
def cases(save_tiny, tmp_path_factory):
    made = {}

    def case(model_type):
        if model_type not in made:
            folder = tmp_path_factory.mktemp("inserted")
            # A random model whose head is its embedding repeats one token, whatever is edited.
            overrides = {"tie_word_embeddings": False}
            made[model_type] = Case(save_tiny(model_type, folder / "base", overrides=overrides), folder / model_type)
        return made[model_type]

    return case


def left_padded(batch):
    """Prompts of 13, 12, ... tokens, padded on the left."""
    ids, mask = IDS[:batch].clone(), torch.ones(batch, IDS.shape[1], dtype=torch.long)
    for row in range(batch):
        ids[row, :row], mask[row, :row] = PAD_ID, 0
    return {"input_ids": ids, "attention_mask": mask}


def greedy(model, batch, settings):
    return model.generate(
        **left_padded(batch), max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False, **settings
    )


def logits(model, ids=IDS, **settings):
    with torch.no_grad():
        return model(ids, **settings).logits


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("model_type", [*REQUIRED, "opt"])  # opt hands its maps batch and positions as one
def test_greedy_tokens_equal_the_hooked_models(model_type, cache, batch, cases):
    case = cases(model_type)
    plain = greedy(case.live, batch, CACHES[cache])
    with case.hooked():
        expected = greedy(case.live, batch, CACHES[cache])
    assert torch.equal(greedy(case.inserted(), batch, CACHES[cache]), expected)
    assert not torch.equal(plain, expected)


# Compiling takes ten times as long as everything else here: one of each kind of layer by default.
COMPILED = ("llama", "gpt2", "opt")


@pytest.mark.parametrize(
    "model_type", [pytest.param(name, marks=() if name in COMPILED else pytest.mark.sweep) for name in MODEL_TYPES]
)
def test_it_compiles_as_one_graph(model_type, cases):
    case = cases(model_type)
    model = case.inserted()
    if has_experts(model):
        model.set_experts_implementation("batched_mm")
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    for ids in (IDS, IDS[:2, :7].contiguous(), IDS):
        with case.hooked():
            expected = logits(case.live, ids, use_cache=False)
        assert relative(logits(compiled, ids, use_cache=False), expected) <= 1e-5


@pytest.mark.parametrize("model_type", REQUIRED)
def test_it_trains_with_gradient_checkpointing(model_type, cases):
    model = cases(model_type).inserted()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.train()
        model.zero_grad()
        model(IDS, use_cache=False).logits.square().mean().backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    without, with_checkpoints = gradients
    added = [name for name in without if "alignez_edits" in name]
    assert len(added) > 20
    for name in without:
        assert relative(with_checkpoints[name], without[name]) <= 1e-5, name
    assert all(without[name].abs().max() > 0 for name in added)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_saved_again_it_loads_the_same(model_type, cases, tmp_path):
    case = cases(model_type)
    model = case.inserted()
    model.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again/modeling_alignez.py").read_bytes() == (case.folder / "modeling_alignez.py").read_bytes()
    config, again = (json.loads((path / "config.json").read_text()) for path in (case.folder, tmp_path / "again"))
    for key in ("model_type", "architectures", "auto_map", "alignez_edits"):
        assert config[key] == again[key]
    reloaded = load_inserted(tmp_path / "again", dtype=torch.float32)
    state, saved = reloaded.state_dict(), model.state_dict()
    assert list(state) == list(saved)
    assert all(torch.equal(state[name], saved[name]) for name in saved)
    assert torch.equal(logits(reloaded), logits(model))


@pytest.mark.parametrize("model_type", REQUIRED)
def test_device_maps_keep_layers_whole_and_offloaded_edits_are_fetched(model_type, cases, tmp_path):
    case = cases(model_type)
    expected = logits(case.inserted())
    automatic = case.inserted(device_map="auto")
    assert torch.equal(logits(automatic), expected)
    room = {"cpu": int(0.95 * sum(parameter.nbytes for parameter in automatic.parameters()))}
    offloaded = case.inserted(device_map="auto", max_memory=room, offload_folder=tmp_path)
    places = offloaded.hf_device_map
    layer = case.base.architecture.layer_path(1)
    assert places[layer] == "disk"
    assert "cpu" in places.values()
    assert not [name for name in places if name.startswith(f"{layer}.")]
    assert relative(logits(offloaded), expected) <= 1e-6


@pytest.mark.skipif(transformers.__version__ < "5", reason="transformers 4 records what layers put out before a hook")
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_hidden_states_and_attentions_are_the_hooked_models(model_type, cases):
    case = cases(model_type)
    settings = {"output_hidden_states": True, "output_attentions": True, "use_cache": False}
    model = case.inserted(attn_implementation="eager")
    live = AutoModelForCausalLM.from_pretrained(case.base_path, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad(), edited_by_hooks(live.eval(), case.base.architecture, case.plan):
        expected = live(IDS, **settings)
    with torch.no_grad():
        found = model(IDS, **settings)
    for name in ("hidden_states", "attentions"):
        assert len(found[name]) == len(expected[name]) >= 2
        assert all(relative(a, b) <= 1e-5 for a, b in zip(found[name], expected[name], strict=True))


def test_it_is_copied_and_its_state_pickled(cases):
    model = cases("llama").inserted()
    expected = logits(model)
    copied = copy.deepcopy(model)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "alignez_edits" in name:
                parameter.zero_()
    assert torch.equal(logits(copied), expected)
    assert relative(logits(model), expected) > 1e-2
    model.load_state_dict(state)
    assert torch.equal(logits(model), expected)


def test_copies_that_share_all_but_the_modules_have_edits_of_their_own(cases):
    """What DataParallel makes for each device."""
    edits = cases("llama").inserted().model.layers[0].mlp.down_proj.alignez_edits
    replica = edits._replicate_for_data_parallel()
    for name, edit in edits.named_children():
        copied = edit._replicate_for_data_parallel()
        copied._parameters = {key: None if value is None else value * 0 for key, value in edit._parameters.items()}
        replica._modules[name] = copied
    y = torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(replica.edited(y, y), y)
    assert not torch.equal(edits.edited(y, y), y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_from_config_makes_edits_that_do_nothing_yet(cases, dtype):
    config = AutoConfig.from_pretrained(cases("llama").folder, trust_remote_code=True)
    model = AutoModelForCausalLM.from_config(config, trust_remote_code=True, dtype=dtype).eval()
    added = {name: parameter for name, parameter in model.named_parameters() if "alignez_edits" in name}
    assert {parameter.dtype for parameter in added.values()} == {torch.promote_types(dtype, torch.float32)}
    assert not any(parameter.any() for parameter in added.values())
    assert logits(model).isfinite().all()


def test_an_edited_embedding_that_grows_stays_edited(cases):
    model = cases("llama").inserted()
    expected = logits(model)
    model.resize_token_embeddings(VOCABULARY + 8)
    assert relative(logits(model)[..., :VOCABULARY], expected) <= 1e-6
