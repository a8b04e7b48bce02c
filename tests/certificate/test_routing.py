"""Mixtures of experts: runs are compared under one choice of experts, which hides nothing that was changed."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from alignez_bake.certificate.forward import certify_forward
from alignez_bake.certificate.forward_passes import record_outputs, relative_error
from alignez_bake.certificate.routing import (
    Generated,
    RouterCalls,
    Routing,
    compare_greedy,
    count_flips,
    routing_of,
    watched_routers,
)
from alignez_bake.commands.bake import bake
from alignez_bake.edit import Edit
from alignez_bake.edit_plan import EditPlan
from alignez_bake.language_model.loading import load_model
from alignez_bake.lowering.hooks import edited_by_hooks
from alignez_bake.model_folder import open_model_folder
from alignez_bake.site import Site
from tests.baking import lowered, plan_for, replace_tensors

# Half of the positions are for greedy tokens: 32 of them, after prompts of at most 32.
SHORT = {"max_position_embeddings": 64}
PROMPTS = tuple(tuple(range(3 + 5 * row, 3 + 5 * row + length)) for row, length in enumerate((5, 9, 2, 12, 7)))


def nothing(_count):
    """No progress bar."""


def record(model, folder, batch_size=2, replay=None):
    return record_outputs(model, folder.architecture, PROMPTS, batch_size, nothing, replay=replay)


def opened(base, dtype=torch.float32):
    folder = open_model_folder(base)
    return folder, load_model(folder, dtype=dtype).model


def certified(base, result, plan):
    folder = open_model_folder(base)
    return certify_forward(folder, lowered(folder, plan), load_model(open_model_folder(result)))


def removals(base, seed):
    """The same removal at the embedding and at every writer."""
    folder = open_model_folder(base)
    directions = np.linalg.qr(np.random.default_rng(seed).normal(size=(32, 2)))[0]
    sites = [Site("embed"), *(Site(kind, layer) for layer in (0, 1) for kind in ("attn_write", "mlp_write"))]
    return EditPlan(tuple(Edit(site, left=-directions, right=directions) for site in sites), base=folder.fingerprint)


def gate(layer):
    return f"model.layers.{layer}.block_sparse_moe.gate.weight"


def changed_rows(folder, layers, change):
    """Rewrite routers: `change(rows)` in place, on copies [experts, d]."""
    names = {gate(layer) for layer in layers}

    def changed(name, values):
        if name not in names:
            return None
        rows = np.array(values)
        change(rows)
        return rows

    replace_tensors(folder, changed)


# What is replayed.


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_to_replay_a_models_own_choice_changes_no_bit(dtype, batch_size, tmp_path, save_tiny):
    folder, model = opened(save_tiny("mixtral", tmp_path, dtype=dtype), dtype)
    free = record(model, folder, batch_size)
    forced = record(model, folder, batch_size, free.routing)
    assert torch.equal(free.residual, forced.residual)
    assert torch.equal(free.logits, forced.logits)
    assert torch.equal(free.router_logits, forced.router_logits)
    tokens = sum(len(prompt) for prompt in PROMPTS)
    assert count_flips(forced.routing, free.routing) == (2 * tokens, 0.0)


def test_what_is_replayed_does_not_depend_on_what_else_the_router_gives(tmp_path, save_tiny):
    """Probabilities, in transformers 5.0, where later versions give logits."""
    folder, model = opened(save_tiny("mixtral", tmp_path))
    free = record(model, folder)
    for path in folder.architecture.router_paths(2):
        router = model.get_submodule(path)
        router.register_forward_hook(lambda _module, _args, output: (output[0].softmax(-1), *output[1:]))
    forced = record(model, folder, replay=free.routing)
    assert torch.equal(free.residual, forced.residual)
    assert torch.equal(free.router_logits, forced.router_logits)


def test_experts_get_the_given_choice_with_weights_of_the_runs_own_router(tmp_path, save_tiny):
    """w = softmax of the run's own logits over the given experts alone, which is the module's formula simplified."""
    _, model = opened(save_tiny("mixtral", tmp_path))
    paths = {"model.layers.0.mlp.gate": "softmax", "model.layers.1.mlp.gate": "softmax"}
    ids = torch.tensor([PROMPTS[3]])
    order = torch.rand(ids.numel(), 4, generator=torch.Generator().manual_seed(0)).argsort(dim=-1)[:, :2]
    given = RouterCalls({}, {path: [order] for path in paths})
    seen = []
    for path in paths:
        experts = model.get_submodule(path.replace("gate", "experts"))
        experts.register_forward_pre_hook(lambda _module, args: seen.append(args))
    with torch.no_grad(), watched_routers(model, paths, given) as calls:
        model(ids, use_cache=False)
    assert len(seen) == 2
    for path, (_, chosen, weights) in zip(paths, seen, strict=True):
        assert torch.equal(chosen, order)
        (logits,), (own,) = calls.logits[path], calls.chosen[path]
        assert torch.allclose(weights, logits.gather(-1, order).softmax(-1), rtol=1e-6)
        assert torch.equal(own, logits.softmax(-1).topk(2).indices)
        assert not torch.equal(own, order)


def test_padding_is_no_choice_and_generated_tokens_are(tmp_path, save_tiny):
    mask = torch.tensor([[False, True, True], [True, True, True]])
    calls = RouterCalls(
        {"r": [torch.arange(6.0)[:, None], torch.tensor([[6.0], [7.0]])]},
        {"r": [torch.arange(6)[:, None], torch.tensor([[6], [7]])]},
    )
    routing = routing_of([calls], [mask])
    assert [prompt.flatten().tolist() for prompt in routing.chosen] == [[1, 2, 6], [3, 4, 5, 7]]
    assert [prompt.shape for prompt in routing.logits] == [(1, 3, 1), (1, 4, 1)]
    folder, model = opened(save_tiny("mixtral", tmp_path))
    assert [prompt.shape for prompt in record(model, folder).routing.chosen] == [
        (2, len(prompt), 2) for prompt in PROMPTS
    ]


def test_nothing_is_left_on_a_model_and_nothing_is_put_on_a_dense_one(tmp_path, save_tiny):
    _, moe = opened(save_tiny("mixtral", tmp_path / "moe"))
    router = moe.get_submodule("model.layers.0.mlp.gate")
    before = len(router._forward_hooks)
    with watched_routers(moe, {"model.layers.0.mlp.gate": "softmax"}):
        assert len(router._forward_hooks) == before + 1
    assert len(router._forward_hooks) == before
    folder, dense = opened(save_tiny("llama", tmp_path / "dense"))
    assert folder.architecture.router_paths(2) == {}
    assert record(dense, folder).routing is None


def test_a_router_of_another_formula_is_not_replayed(tmp_path, save_tiny):
    folder, model = opened(save_tiny("mixtral", tmp_path))
    free = record(model, folder)
    router = model.get_submodule("model.layers.1.mlp.gate")
    router.register_forward_hook(lambda _module, _args, output: (output[0], output[1] * 1.1, output[2]))
    record(model, folder)  # to watch it is no harm
    with pytest.raises(RuntimeError, match=r"model\.layers\.1\.mlp\.gate weighs its experts by another formula"):
        record(model, folder, replay=free.routing)


# Greedy tokens, on made-up choices: one router, prompts of two tokens, three generated ones, of which two are read.


def generated(tokens, choices):
    routing = Routing((), tuple(torch.tensor([prompt])[..., None] for prompt in choices), ())
    return Generated(tokens, routing)


SAME = [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("tokens", "choices", "counts"),
    [
        ([5, 6, 7], SAME, (1, 0, 0)),
        ([5, 6, 7], [0, 0, 0, 1], (1, 1, 0)),  # flipped, and equal all the same
        ([5, 6, 8], SAME, (0, 0, 0)),
        ([5, 6, 8], [0, 0, 0, 1], (0, 1, 1)),  # the last token comes from the fourth position
        ([5, 9, 8], [0, 0, 0, 1], (0, 0, 0)),  # another text by then
        ([5, 9, 8], [0, 0, 1, 1], (0, 1, 1)),
        ([4, 6, 7], [0, 0, 1, 0], (0, 0, 0)),
        ([4, 6, 7], [1, 0, 0, 0], (0, 1, 1)),
    ],
)
def test_tokens_that_differ_are_left_out_only_after_a_flip(tokens, choices, counts):
    found = generated([[5, 6, 7], tokens], [SAME, choices])
    entry = compare_greedy(8, found, generated([[5, 6, 7]] * 2, [SAME] * 2))
    equal, flipped, left_out = counts
    assert entry == (8, 2, equal + 1, flipped, left_out)
    assert bool(entry.failures()) == (not equal and not left_out)
    assert entry.doubts() == []


def test_too_many_left_out_prompts_are_a_doubt():
    flips = [[1, 0, 0, 0]]
    found = generated([[5, 6, 7], [4, 6, 7], [4, 6, 7]], [SAME, *flips * 2])
    entry = compare_greedy(8, found, generated([[5, 6, 7]] * 3, [SAME] * 3))
    assert entry == (8, 3, 1, 2, 2)
    assert entry.failures() == []
    (reason,) = entry.doubts()
    assert "2 of 3 prompts" in reason


# Certificates.


@pytest.fixture(scope="module")
def dense_bounds(tmp_path_factory, save_tiny):
    """Residual errors and bounds of a dense model of the same size, in fp16."""
    folder = tmp_path_factory.mktemp("dense")
    base = save_tiny("llama", folder / "base", dtype=torch.float16)
    plan = removals(base, 0)
    return certified(base, bake(base, plan, folder / "out").path, plan).comparisons


@pytest.mark.parametrize("seed", [3, 6, 10])
def test_right_bakes_pass_where_choices_flip(seed, dense_bounds, tmp_path, save_tiny):
    """Compared freely, each of these had an error of five to twenty times the dtype's noise, and failed."""
    base = save_tiny("mixtral", tmp_path / "base", seed=seed, dtype=torch.float16)
    plan = removals(base, seed)
    certificate = certified(base, bake(base, plan, tmp_path / "out").path, plan)
    assert certificate.verdict == "passed", certificate.reasons
    for entry, dense in zip(certificate.comparisons, dense_bounds, strict=True):
        assert entry.residual_bound < 2 * dense.residual_bound
        assert entry.residual_error < entry.residual_bound
    assert certificate.routing.chosen_by == "the hooked base in float32"
    for entry in certificate.routing.comparisons:
        assert 0 < entry.flipped_share < 0.01
        assert 0 < entry.logits_error <= entry.logits_bound
    json.dumps(certificate.to_json(), allow_nan=False)


def tie(base, dtype):
    """Experts 0 and 1 of both layers: nearly tied wherever they are, as far apart as their weights are."""

    def rows(values):
        values[1] = values[0] * (1 + np.float32(1e-7))
        if dtype == torch.bfloat16:  # one element by a last bit, far below what bf16 logits can hold
            values[0, 5], values[1, 5] = 2.0**-17, 2.0**-17 * (1 + 2.0**-7)

    replace = {gate(layer) for layer in (0, 1)}

    def changed(name, values):
        if name not in replace:
            return None
        wide = values.astype(np.float32)
        rows(wide)
        return wide.astype(values.dtype)

    replace_tensors(base, changed)


def alike(base):
    """Expert 1 is expert 0 but for a thousandth: a flip is seen in the outputs, hardly in greedy tokens."""
    tensors = open_model_folder(base).tensors

    def changed(name, _values):
        if ".experts.1." not in name:
            return None
        values = tensors.read(name.replace(".experts.1.", ".experts.0."))
        return values * values.dtype.type(1.001) if ".w2." in name else values

    original = {name: changed(name, None) for name in tensors.names()}
    replace_tensors(base, lambda name, _values: original[name])


@pytest.fixture
def tied(tmp_path, save_tiny):
    """`tied(dtype, similar) -> (base, result, plan)`: a bake of a base with two tied experts."""

    def make(dtype, *, similar):
        base = save_tiny("mixtral", tmp_path / "base", dtype=dtype, overrides=SHORT)
        tie(base, dtype)
        if similar:
            alike(base)
        plan = plan_for(base, ("attn_write", "mlp_write"), scale=0.3)
        return base, bake(base, plan, tmp_path / "out").path, plan

    return make


def test_tied_experts_pass_in_fp32_and_their_flips_are_told(tied):
    base, out, plan = tied(torch.float32, similar=True)
    # What the replay is for: compared freely, right runs are apart.
    folder, model = opened(base)
    with edited_by_hooks(model, folder.architecture, plan):
        exact = record(model, folder)
    _, baked = opened(out)
    assert relative_error(record(baked, folder).residual, exact.residual) > 1e-5
    assert relative_error(record(baked, folder, replay=exact.routing).residual, exact.residual) < 1e-5
    certificate = certified(base, out, plan)
    assert certificate.verdict == "passed", certificate.reasons
    assert certificate.routing.chosen_by == "the hooked base in float32"
    for entry, greedy in zip(certificate.routing.comparisons, certificate.routing.greedy, strict=True):
        assert entry.flipped_share > 0.01
        assert greedy.flipped > greedy.prompts / 2
        assert greedy.equal > greedy.prompts / 2
    figures = json.loads(json.dumps(certificate.to_json(), allow_nan=False))["routing"]
    share, choices = (figures["comparisons"][1][name] for name in ("flipped_share", "choices"))
    rows = dict(certificate.main_figures())
    assert rows["choices of experts, batch 8"].startswith(f"{round(share * choices)} of {choices} would")
    assert "differ after a flipped choice, batch 8" in " ".join(rows)


def test_tied_experts_pass_in_bf16(tied):
    certificate = certified(*tied(torch.bfloat16, similar=False))
    assert certificate.verdict == "passed", certificate.reasons
    for entry in certificate.routing.comparisons:
        assert entry.flipped_share > 0.05


def test_where_flips_leave_too_few_greedy_tokens_nothing_is_shown(tied):
    certificate = certified(*tied(torch.float32, similar=False))
    assert certificate.verdict == "inconclusive"
    assert all("choice of experts flipped" in reason for reason in certificate.reasons)
    assert all(entry.residual_error < 1e-5 for entry in certificate.comparisons)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_an_expert_left_out_still_fails_end_to_end(dtype, tmp_path, save_tiny):
    base = save_tiny("mixtral", tmp_path / "base", dtype=dtype, overrides=SHORT)
    plan = plan_for(base, ("attn_write", "mlp_write"), scale=0.3)
    out = bake(base, plan, tmp_path / "out").path
    original, left_out = open_model_folder(base).tensors, "model.layers.0.block_sparse_moe.experts.2.w2.weight"
    replace_tensors(out, lambda name, _values: original.read(name) if name == left_out else None)
    certificate = certified(base, out, plan)
    assert certificate.verdict == "failed"
    for size in (1, 8):
        assert any(reason.startswith(f"batch {size}: residual differ") for reason in certificate.reasons)


# A changed router shows, although its choice is replayed.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_changed_router_of_chosen_experts_shows_in_the_outputs(dtype, tmp_path, save_tiny):
    base = save_tiny("mixtral", tmp_path / "base", dtype=dtype, overrides=SHORT)
    plan = plan_for(base, ("attn_write",), scale=0.3)
    out = bake(base, plan, tmp_path / "out").path

    def scaled(rows):
        rows *= 1.1

    changed_rows(out, [0], scaled)
    certificate = certified(base, out, plan)
    assert certificate.verdict == "failed"
    for part in ("batch 8: residual differ", "batch 8: routers' logits differ"):
        assert part in " ".join(certificate.reasons)


def test_a_changed_router_of_experts_that_are_never_chosen_shows_in_its_logits(tmp_path, save_tiny):
    """Experts 4 and 5 have logit 0 and two others are always above: under the replayed choice they count nowhere."""
    base = save_tiny("mixtral", tmp_path / "base", overrides={**SHORT, "num_local_experts": 6})

    def in_pairs(rows):
        rows[1], rows[3], rows[4:] = -rows[0], -rows[2], 0

    changed_rows(base, [0, 1], in_pairs)
    plan = plan_for(base, ("attn_write",), scale=0.3)
    out = bake(base, plan, tmp_path / "out").path
    assert certified(base, out, plan).verdict == "passed"

    def raised(rows):
        rows[4] = 2 * rows[0]

    changed_rows(out, [1], raised)
    certificate = certified(base, out, plan)
    assert certificate.verdict == "failed"
    assert max(entry.residual_error for entry in certificate.comparisons) < 1e-5
    assert [reason.partition(" differ")[0] for reason in certificate.reasons if "logits" in reason] == [
        "batch 1: routers' logits",
        "batch 8: routers' logits",
    ]
    assert certificate.routing.comparisons[0].flipped_share > 0.1
