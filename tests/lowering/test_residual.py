"""The two edits of the residual stream that are edits of its writers, and what looks like them and is not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from alignez_bake.edit import Edit
from alignez_bake.edit_plan import EditPlan
from alignez_bake.lowering.residual import REMOVAL_REASON, SHIFT_REASON, moved_to_writers
from alignez_bake.lowering.slot import find_slot
from alignez_bake.model_folder import open_model_folder
from alignez_bake.site import Site
from tests.lowering.folding import FP32_END, MARGIN, assert_folds, errors, fold_into, refusal, routes
from tests.random_edits import random_edit
from tests.tiny_models import COMBINATIONS

LAYERS = (0, 1)
EMBED = Site("embed")
UNTIED = {"tie_word_embeddings": False}


def shift(layer, *, width=32, seed=0, **settings):
    bias = np.random.default_rng([seed, layer]).normal(size=width)
    return Edit(Site("residual", layer), bias=bias, **settings)


# Shifts

WITH_BIAS = [("gpt2", True), ("gpt_neox", False), ("gpt_neox", True), ("llama", True), ("opt", True)]


@pytest.mark.parametrize(("model_type", "bias"), WITH_BIAS)
def test_a_shift_behind_a_layer_is_a_bias_of_its_mlp_writer(model_type, bias, tmp_path, save_tiny):
    base = open_model_folder(save_tiny(model_type, tmp_path / "base", bias=bias))
    plan = EditPlan((shift(0, strength=-0.7), shift(1), shift(1, seed=1)))
    lowering = assert_folds(base, plan, tmp_path / "out")
    assert all(decision.reason.startswith(SHIFT_REASON) for decision in lowering.decisions)
    assert [decision.edit.site.kind for decision in lowering.decisions] == ["residual"] * 3
    out = open_model_folder(tmp_path / "out").tensors
    changed = {name for name in base.tensors if not np.array_equal(base.tensors.read(name), out.read(name))}
    assert changed == {find_slot(base, Site("mlp_write", layer)).bias for layer in LAYERS}


@pytest.mark.parametrize(("model_type", "bias"), WITH_BIAS)
@pytest.mark.parametrize("objectives", [(None, None, None), ("a", "a", "a"), ("a", "b", "a"), ("b", "a", None)])
def test_a_shift_comes_after_all_other_edits_of_the_writer(model_type, bias, objectives, tmp_path, save_tiny):
    """In the plan it stands before them, where folding it in order would let them read it."""
    base = open_model_folder(save_tiny(model_type, tmp_path / "base", bias=bias))
    mlp = Site("mlp_write", 0)
    width = find_slot(base, mlp).d_out
    edits = (
        shift(0, strength=3.0),
        random_edit(mlp, width, width, constant=True, seed=1),
        random_edit(mlp, width, width, constant=True, seed=2),
    )
    edits = tuple(replace(edit, objective=name) for edit, name in zip(edits, objectives, strict=True))
    weights = {name: dial for name, dial in (("a", 0.5), ("b", -1.5)) if name in objectives}
    assert_folds(base, EditPlan(edits, weights=weights), tmp_path / "out")


def test_the_order_of_a_shift_at_its_writer_is_seen_by_the_comparison(tmp_path, save_tiny):
    base = open_model_folder(save_tiny("gpt2", tmp_path / "base", bias=True))
    plan = EditPlan((shift(0, strength=3.0), random_edit(Site("mlp_write", 0), 32, 32, constant=True)))
    wrong = EditPlan(tuple(replace(edit, site=Site("mlp_write", 0)) for edit in plan.edits))
    fold_into(base, wrong, tmp_path / "out")
    assert min(errors(base, plan, tmp_path / "out")) > MARGIN * FP32_END


def test_a_writer_without_a_bias_has_no_room_for_a_shift(tiny_folder):
    base = open_model_folder(tiny_folder("llama", False))
    plan = EditPlan((shift(0),))
    assert routes(plan, base, code=True) == ["insert"]
    assert routes(plan, base) == ["refuse"]
    assert "--trust-remote-code" in refusal(plan, base)


def test_a_writer_that_is_inserted_leaves_the_shift_to_the_streams_own_module(tiny_folder):
    base = open_model_folder(tiny_folder("gpt2"))
    gated = replace(random_edit(Site("mlp_write", 0), 32, 32), gate="relu")
    assert routes(EditPlan((gated, shift(0))), base, code=True) == ["insert", "insert"]
    assert routes(EditPlan((gated, shift(0))), base) == ["refuse", "refuse"]
    assert routes(EditPlan((gated, shift(1))), base, code=True) == ["insert", "fold"]


SUMS_NO_MORE = [
    ("opt", True, {"do_layer_norm_before": False}),  # a norm follows the sum
    ("gemma2", True, {}),  # a norm follows the writer
    ("gemma2", False, UNTIED),
    ("gemma3_text", False, UNTIED),
    ("olmo2", False, {}),
    ("granite", True, {}),  # a multiplier follows the writer
]


@pytest.mark.parametrize(("model_type", "bias", "overrides"), SUMS_NO_MORE)
def test_a_layer_that_is_no_sum_of_its_writers_is_left_alone(model_type, bias, overrides, tmp_path, save_tiny):
    base = open_model_folder(save_tiny(model_type, tmp_path, bias=bias, overrides=overrides))
    width = find_slot(base, Site("mlp_write", 0)).d_out
    for plan in (EditPlan((shift(0, width=width),)), removal_everywhere(width)):
        assert moved_to_writers(plan, base) == {}
        stream = [place for place, edit in enumerate(plan.edits) if edit.site.kind == "residual"]
        assert {routes(plan, base, code=True)[place] for place in stream} == {"insert"}
        assert {routes(plan, base)[place] for place in stream} == {"refuse"}


def test_a_multiplier_of_one_leaves_the_sum(tmp_path, save_tiny):
    """The embedding's own multiplier is no obstacle: a multiple of what lacks some directions lacks them as well."""
    overrides = {"residual_multiplier": 1.0}
    base = open_model_folder(save_tiny("granite", tmp_path / "base", bias=True, overrides=overrides))
    assert base.config["embedding_multiplier"] != 1.0
    assert_folds(base, EditPlan((shift(0), shift(1))), tmp_path / "shifted")
    assert_folds(base, removal_everywhere(), tmp_path / "removed")


@pytest.mark.parametrize(
    "other",
    [
        random_edit(Site("residual", 0), 32, 32),
        random_edit(Site("residual", 0), 32, 32, objective="other"),
        shift(0, positions="last"),
    ],
    ids=["reads the stream", "of another objective", "last position"],
)
@pytest.mark.parametrize("first", [True, False])
def test_a_shift_beside_another_edit_of_the_stream_stays(other, first, tiny_folder):
    base = open_model_folder(tiny_folder("gpt2"))
    plan = EditPlan((shift(0), other) if first else (other, shift(0)))
    assert moved_to_writers(plan, base) == {}
    assert routes(plan, base, code=True) == ["insert", "insert"]
    assert routes(plan, base) == ["refuse", "refuse"]


# Removals


def directions(width=32, seed=0, rank=2):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(width, rank)))[0].astype(np.float32)


def removal(site, u, **settings):
    return Edit(site, left=-u, right=u, **settings)


def removal_everywhere(width=32, *, kinds=("attn_write", "residual"), u=None, **settings):
    """The same removal at the embedding and, layer by layer, at sites of these kinds."""
    u = directions(width) if u is None else u
    sites = [EMBED, *(Site(kind, layer) for layer in LAYERS for kind in kinds)]
    return EditPlan(tuple(removal(site, u, **settings) for site in sites))


def stream_routes(plan, base, *, code=False):
    """Routes of the edits behind layers alone."""
    found = zip(plan.edits, routes(plan, base, code=code), strict=True)
    return [route for edit, route in found if edit.site.kind == "residual"]


NOT_SEQUENTIAL = ("gpt2", "opt", "gemma2", "gemma3_text", "gpt_neox", "granite", "olmo2")
SEQUENTIAL = [case for case in COMBINATIONS if case[0] not in NOT_SEQUENTIAL]


@pytest.mark.parametrize(("model_type", "bias"), SEQUENTIAL)
def test_a_removal_at_every_place_is_one_of_the_writers(model_type, bias, tmp_path, save_tiny):
    base = open_model_folder(save_tiny(model_type, tmp_path / "base", bias=bias, overrides=UNTIED))
    plan = removal_everywhere(find_slot(base, EMBED).d_out)
    lowering = assert_folds(base, plan, tmp_path / "out")
    moved = [decision for decision in lowering.decisions if decision.edit.site.kind == "residual"]
    assert len(moved) == 2
    assert all(decision.reason.startswith(REMOVAL_REASON) for decision in moved)


@pytest.mark.parametrize("bias", [False, True])
def test_where_attention_and_mlp_are_parallel_embedding_and_layers_are_enough(bias, tmp_path, save_tiny):
    base = open_model_folder(save_tiny("gpt_neox", tmp_path / "base", bias=bias))
    lowering = assert_folds(base, removal_everywhere(kinds=("residual",)), tmp_path / "out")
    assert {fold.slot.site for fold in lowering.folds} == {
        EMBED,
        *(Site(kind, layer) for layer in LAYERS for kind in ("attn_write", "mlp_write")),
    }
    assert_folds(base, removal_everywhere(), tmp_path / "with_attention")


def test_where_they_are_not_parallel_attention_writes_into_what_the_mlp_reads(tmp_path, save_tiny):
    sequential = {"use_parallel_residual": False}
    base = open_model_folder(save_tiny("gpt_neox", tmp_path / "base", overrides=sequential))
    assert stream_routes(removal_everywhere(kinds=("residual",)), base) == ["refuse", "refuse"]
    assert_folds(base, removal_everywhere(), tmp_path / "out")


def test_a_layer_whose_writers_both_lack_the_directions_needs_no_edit_of_its_own(tmp_path, save_tiny):
    base = open_model_folder(save_tiny("llama", tmp_path / "base"))
    u = directions()
    sites = (EMBED, Site("attn_write", 0), Site("mlp_write", 0), Site("attn_write", 1), Site("residual", 1))
    assert_folds(base, EditPlan(tuple(removal(site, u) for site in sites)), tmp_path / "out")


def test_the_same_directions_in_another_basis_and_by_dials_are_the_same_removal(tmp_path, save_tiny):
    base = open_model_folder(save_tiny("llama", tmp_path / "base"))
    plan = removal_everywhere(objective="harmless", strength=2.0)
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(2, 2)))[0].astype(np.float32)
    edits = list(plan.edits)
    edits[3] = removal(edits[3].site, directions() @ turn, objective="harmless", strength=2.0)
    assert_folds(base, EditPlan(tuple(edits), weights={"harmless": 0.5}), tmp_path / "out")


def replaced(plan, site, *edits):
    """The plan with other edits instead of those of a site."""
    found = []
    for edit in plan.edits:
        found.extend(edits if edit.site == site else (edit,))
    return EditPlan(tuple(found))


EVERYWHERE = removal_everywhere()
U = directions()
TURNED = np.linalg.qr(U + 1e-4 * np.random.default_rng(9).normal(size=U.shape))[0].astype(np.float32)
FIRST_ATTENTION, LAST_ATTENTION = Site("attn_write", 0), Site("attn_write", 1)
FIRST_MLP, FIRST, LAST = Site("mlp_write", 0), Site("residual", 0), Site("residual", 1)

# What is near to a removal everywhere, and which of the two residual edits is a writer's still.
NEAR_MISSES = {
    "the embedding is not edited": (replaced(EVERYWHERE, EMBED), ["refuse", "refuse"]),
    "another U at the embedding": (replaced(EVERYWHERE, EMBED, removal(EMBED, directions(seed=1))), ["refuse"] * 2),
    "U turned by less than a thousandth": (replaced(EVERYWHERE, EMBED, removal(EMBED, TURNED)), ["refuse"] * 2),
    "another U behind the first layer": (
        replaced(EVERYWHERE, FIRST, removal(FIRST, directions(seed=1))),
        ["refuse", "refuse"],
    ),
    "another U behind the last layer": (
        replaced(EVERYWHERE, LAST, removal(LAST, directions(seed=1))),
        ["fold", "refuse"],
    ),
    "one direction less at an attention writer": (
        replaced(EVERYWHERE, LAST_ATTENTION, removal(LAST_ATTENTION, U[:, :1])),
        ["fold", "refuse"],
    ),
    "an attention writer is left out": (replaced(EVERYWHERE, FIRST_ATTENTION), ["refuse", "refuse"]),
    "the first layer is left out": (replaced(EVERYWHERE, FIRST), ["refuse"]),
    "strength 0.9 at the embedding": (replaced(EVERYWHERE, EMBED, removal(EMBED, U, strength=0.9)), ["refuse"] * 2),
    "strength 0.9 everywhere": (removal_everywhere(strength=0.9), ["refuse", "refuse"]),
    "strength just below 1": (removal_everywhere(strength=1 - 1e-4), ["refuse", "refuse"]),
    "directions that are not orthonormal": (removal_everywhere(u=1.01 * U), ["refuse", "refuse"]),
    "half a dial": (
        EditPlan(removal_everywhere(objective="a").edits, weights={"a": 0.5}),
        ["refuse", "refuse"],
    ),
    "a constant besides": (
        replaced(EVERYWHERE, LAST, removal(LAST, U, bias=np.ones(32))),
        ["fold", "refuse"],
    ),
    "the embedding is edited once more": (
        replaced(EVERYWHERE, EMBED, removal(EMBED, U), Edit(EMBED, bias=np.ones(32))),
        ["refuse", "refuse"],
    ),
    "an attention writer is edited once more": (
        replaced(EVERYWHERE, FIRST_ATTENTION, removal(FIRST_ATTENTION, U), random_edit(FIRST_ATTENTION, 32, 32)),
        ["refuse", "refuse"],
    ),
    "the MLP writer is edited otherwise": (
        EditPlan((*EVERYWHERE.edits, random_edit(FIRST_MLP, 32, 32))),
        ["refuse", "refuse"],
    ),
    "the stream is edited once more": (
        replaced(EVERYWHERE, FIRST, removal(FIRST, U), shift(0)),
        ["refuse", "refuse", "refuse"],
    ),
    "bounded": (replaced(EVERYWHERE, LAST, removal(LAST, U, gate="tanh")), ["fold", "refuse"]),
    "at the last position": (replaced(EVERYWHERE, LAST, removal(LAST, U, positions="last")), ["fold", "refuse"]),
    "an attention writer reads its input": (
        replaced(EVERYWHERE, FIRST_ATTENTION, removal(FIRST_ATTENTION, U, reads="input")),
        ["refuse", "refuse"],
    ),
}


@pytest.mark.parametrize("case", NEAR_MISSES)
def test_what_only_looks_like_a_removal_everywhere_stays_with_the_stream(case, tiny_folder):
    base = open_model_folder(tiny_folder("llama"))
    plan, expected = NEAR_MISSES[case]
    assert stream_routes(plan, base) == expected
    assert stream_routes(plan, base, code=True) == [route.replace("refuse", "insert") for route in expected]


@pytest.mark.parametrize(
    ("model_type", "overrides"),
    [
        ("llama", {"tie_word_embeddings": True}),  # the embedding's removal is no fold
        ("gpt2", UNTIED),  # learned positions join behind the embedding
        ("opt", UNTIED),
    ],
)
def test_models_whose_stream_holds_the_directions_all_the_same(model_type, overrides, tmp_path, save_tiny):
    bias = (model_type, False) not in COMBINATIONS
    base = open_model_folder(save_tiny(model_type, tmp_path, bias=bias, overrides=overrides))
    assert stream_routes(removal_everywhere(), base) == ["refuse", "refuse"]
    assert stream_routes(removal_everywhere(), base, code=True) == ["insert", "insert"]


@pytest.mark.parametrize("case", ["attention", "no attention", "learned positions"])
def test_what_is_not_recognised_would_not_have_been_the_same(case, tmp_path, save_tiny):
    """Why the near misses are refused: their residual edits, put at the writers, give another model."""
    model_type = "gpt2" if case == "learned positions" else "llama"
    base = open_model_folder(save_tiny(model_type, tmp_path / "base", overrides=UNTIED))
    plan = removal_everywhere(kinds=("residual",)) if case == "no attention" else removal_everywhere()
    if case == "attention":
        plan = replaced(plan, FIRST_ATTENTION, removal(FIRST_ATTENTION, directions(seed=1)))
    moved = tuple(
        replace(edit, site=Site("mlp_write", edit.site.layer)) if edit.site.kind == "residual" else edit
        for edit in plan.edits
    )
    fold_into(base, EditPlan(moved), tmp_path / "out")
    assert min(errors(base, plan, tmp_path / "out")) > MARGIN * FP32_END
