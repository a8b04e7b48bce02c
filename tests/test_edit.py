"""The record, its one function, and its algebra."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alignez_bake.edit import Edit, compose, edit_delta
from alignez_bake.edit_plan import EditPlan, Group, SiteValues, apply_groups
from alignez_bake.errors import BadInputError
from alignez_bake.low_rank import low_rank
from alignez_bake.site import LAYERLESS, LEGAL_READS, SITE_KINDS, Site
from tests.random_edits import random_edit

SITE = Site("mlp_write", 1)
SEEDS = st.integers(0, 2**31)
LAST_ROW = np.array([[0.0], [0.0], [1.0]])


def as_float64(edit):
    return edit.tensors(lambda array: array.astype(np.float64))


def apply_in_order(edits, y, z=None):
    """The definition, spelt out: y <- y + strength (L g(R^T r + s) + c), one row after the other."""
    result = np.array(y, dtype=np.float64)
    for row in range(len(result)):
        for edit in edits:
            r = result[row] if edit.reads == "output" else z[row]
            step = np.zeros(edit.d_out)
            if edit.left is not None:
                hidden = edit.right.T.astype(np.float64) @ r + (0 if edit.offset is None else edit.offset)
                hidden = {"identity": hidden, "relu": np.maximum(hidden, 0), "tanh": np.tanh(hidden)}[edit.gate]
                step = edit.left @ hidden
            if edit.bias is not None:
                step = step + edit.bias
            result[row] = result[row] + edit.strength * step
    return result


@st.composite
def edits(draw, *, reads=("output", "input"), d_out=7, d_in=5, objective=None):
    kind = draw(st.sampled_from([*reads, "shift"]))
    strength = draw(st.floats(-2, 2, allow_nan=False))
    if kind == "shift":
        bias = np.random.default_rng(draw(SEEDS)).normal(size=d_out)
        return Edit(SITE, bias=bias, strength=strength, objective=objective)
    edit = random_edit(
        SITE, d_out, d_out if kind == "output" else d_in, reads=kind, rank=draw(st.integers(1, 3)),
        constant=draw(st.booleans()), seed=draw(SEEDS), objective=objective,
    )  # fmt: skip
    return edit.scaled(strength)


@pytest.mark.parametrize("gate", ["identity", "relu", "tanh"])
def test_formula_is_the_definition_in_numpy_and_in_torch(gate):
    rng = np.random.default_rng(0)
    edit = Edit(
        SITE, left=rng.normal(size=(7, 3)), right=rng.normal(size=(7, 3)), offset=rng.normal(size=3),
        bias=rng.normal(size=7), gate=gate, strength=0.7,
    )  # fmt: skip
    y = rng.normal(size=(3, 7))
    expected = apply_in_order([edit], y)
    assert np.linalg.norm(expected - y) > 0.5
    np.testing.assert_allclose(y + edit_delta(as_float64(edit), gate, 0.7, y), expected, rtol=1e-12, atol=1e-12)
    in_torch = edit_delta(edit.tensors(torch.tensor), gate, 0.7, torch.tensor(y))
    np.testing.assert_allclose(y + in_torch.numpy(), expected, rtol=1e-12, atol=1e-12)


@given(st.lists(edits(reads=("output",)), min_size=1, max_size=4), SEEDS)
def test_composition_equals_applying_in_order(chain, seed):
    y = np.random.default_rng(seed).normal(size=(3, 7))
    expected = apply_in_order(chain, y)
    composed = compose(chain)
    np.testing.assert_allclose(apply_in_order([composed], y), expected, rtol=1e-9, atol=1e-9)


@given(st.lists(edits(), min_size=1, max_size=4), SEEDS)
def test_low_rank_equals_applying_in_order_to_the_map(chain, seed):
    rng = np.random.default_rng(seed)
    weight, bias, z = rng.normal(size=(7, 5)), rng.normal(size=7), rng.normal(size=(3, 5))
    expected = apply_in_order(chain, z @ weight.T + bias, z)
    change = low_rank(EditPlan(tuple(chain)).groups_at(SITE), weight, bias)
    found = z @ (weight + change.b_matrix @ change.a_matrix).T + bias + change.delta_bias
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_stacking_without_the_cross_term_is_not_the_composition():
    """The mistake that the derivation warns of is visible at this size, so the tests above can see it."""
    chain = [random_edit(SITE, 7, 7, seed=seed) for seed in (1, 2)]
    weight = np.random.default_rng(0).normal(size=(7, 5))
    stacked = sum(edit.left @ (edit.right.T @ weight) for edit in chain)
    change = low_rank(EditPlan(tuple(chain)).groups_at(SITE), weight, None)
    right = change.b_matrix @ change.a_matrix
    assert np.linalg.norm(stacked - right) > 0.05 * np.linalg.norm(right)


@given(
    st.lists(edits(objective="a"), min_size=1, max_size=3),
    st.lists(edits(objective="b"), min_size=1, max_size=3),
    st.floats(-2, 2),
    SEEDS,
)
def test_objectives_are_parallel_and_dials_linear(first, second, dial, seed):
    rng = np.random.default_rng(seed)
    weight, z = rng.normal(size=(7, 5)), rng.normal(size=(3, 5))
    y = z @ weight.T
    plan = EditPlan((*first, *second), weights={"b": dial})
    expected = apply_in_order(first, y, z) + dial * (apply_in_order(second, y, z) - y)
    by_hook = apply_groups(plan.groups_at(SITE), SiteValues(y, z), as_float64, LAST_ROW)
    np.testing.assert_allclose(by_hook, expected, rtol=1e-9, atol=1e-9)
    change = low_rank(plan.groups_at(SITE), weight, None)
    by_fold = z @ (weight + change.b_matrix @ change.a_matrix).T + change.delta_bias
    np.testing.assert_allclose(by_fold, expected, rtol=1e-9, atol=1e-9)
    other_order = EditPlan((*second, *first), weights={"b": dial})
    swapped = apply_groups(other_order.groups_at(SITE), SiteValues(y, z), as_float64, LAST_ROW)
    np.testing.assert_allclose(swapped, expected, rtol=1e-9, atol=1e-9)


def test_last_position_edits_the_last_row_alone():
    edit = random_edit(SITE, 7, 7, seed=3)
    last = Edit(SITE, left=edit.left, right=edit.right, positions="last")
    y = np.random.default_rng(1).normal(size=(3, 7))
    found = apply_groups(EditPlan((last,)).groups_at(SITE), SiteValues(y), as_float64, LAST_ROW)
    np.testing.assert_array_equal(found[:2], y[:2])
    np.testing.assert_allclose(found[2:], apply_in_order([edit], y)[2:], rtol=1e-12)


def test_scaling_multiplies_the_effect_and_mixing_keeps_both():
    y = np.random.default_rng(0).normal(size=(3, 7))
    first = random_edit(SITE, 7, 7, constant=True, objective="a")
    step = apply_in_order([first], y) - y
    np.testing.assert_allclose(apply_in_order([first.scaled(3)], y) - y, 3 * step, rtol=1e-10, atol=1e-12)
    second = random_edit(SITE, 7, 7, seed=9, objective="b")
    mixed = EditPlan((first,)).mixed_with(EditPlan((second,), weights={"b": 0.5}))
    assert mixed.objectives == ("a", "b")
    assert mixed.weights == {"b": 0.5}
    with pytest.raises(BadInputError, match="name of its own"):
        mixed.mixed_with(EditPlan((first,)))


def test_truncation_keeps_the_first_columns():
    edit = random_edit(SITE, 7, 7, rank=3, constant=True)
    cut = edit.truncated(2)
    np.testing.assert_array_equal(cut.left, edit.left[:, :2])
    np.testing.assert_array_equal(cut.offset, edit.offset[:2])
    for rank in (0, 4):
        with pytest.raises(BadInputError, match=r"1\.\.3"):
            edit.truncated(rank)


def test_arrays_of_an_edit_cannot_be_changed():
    source = np.ones((7, 1))
    edit = Edit(SITE, left=source, right=source)
    source[0, 0] = 5.0
    assert edit.left[0, 0] == 1.0
    with pytest.raises(ValueError, match="read-only"):
        edit.left[0, 0] = 2.0
    with pytest.raises(ValueError, match="WRITEABLE"):
        edit.left.setflags(write=True)


def test_an_edit_of_another_strength_shares_its_arrays():
    edit = random_edit(SITE, 7, 7, constant=True)
    plan = EditPlan((edit,)).scaled(0.5).mixed_with(EditPlan((random_edit(SITE, 7, 7, objective="b"),)))
    scaled = plan.with_weights({"b": 2.0}).edits[0]
    assert scaled.strength == 0.5 * edit.strength
    for name in ("left", "right", "offset"):
        assert getattr(scaled, name) is getattr(edit, name)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["left", "right", "offset", "bias"])
def test_one_value_that_is_not_finite_is_found_in_every_array(name, value):
    arrays = {"left": np.ones((7, 2)), "right": np.ones((7, 2)), "offset": np.ones(2), "bias": np.ones(7)}
    arrays[name].flat[1] = value
    with pytest.raises(BadInputError, match=f"{name} holds values that are not finite"):
        Edit(SITE, **arrays)


U = np.ones((7, 2))
BAD_EDITS = [
    ({"left": U}, "only one of left and right"),
    ({}, "would do nothing"),
    ({"left": U, "right": np.ones((7, 3))}, "left has rank 2, right has rank 3"),
    ({"left": U, "right": np.ones((6, 2))}, "same first dimension"),
    ({"left": np.ones((7, 0)), "right": np.ones((7, 0))}, "rank 0"),
    ({"left": U, "right": U, "offset": np.ones(3)}, "offset has shape"),
    ({"left": U, "right": U, "bias": np.ones(6)}, "bias has shape"),
    ({"left": U, "right": np.full((7, 2), np.nan)}, "not finite"),
    ({"left": U, "right": U, "strength": float("inf")}, "must be finite"),
    ({"left": U, "right": U, "strength": True}, "must be a number"),
    ({"left": U, "right": U, "gate": "gelu"}, "use one of identity, relu, tanh"),
    ({"left": U, "right": U, "positions": "first"}, "use one of all, last"),
    ({"left": U, "right": U, "reads": "key"}, "can read output or input or block only"),
    ({"left": U, "right": U, "objective": ""}, "non-empty string"),
    ({"left": U.astype(int), "right": U}, "use float32 or float64"),
    ({"left": np.ones(7), "right": U}, "2 dimension"),
    ({"bias": np.ones(7), "offset": np.ones(1)}, "offset but no left"),
    ({"bias": np.ones(7), "reads": "input"}, "pure shift"),
]


@pytest.mark.parametrize(("fields", "message"), BAD_EDITS)
def test_bad_edits_are_refused_by_name(fields, message):
    with pytest.raises(BadInputError, match=message) as caught:
        Edit(SITE, **fields)
    assert "mlp_write.1" in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "layer", "message"),
    [("mlp_out", 0, "unknown"), ("embed", 0, "no layer"), ("mlp_write", None, "needs a decoder layer"),
     ("mlp_write", -1, "from 0"), ("mlp_write", True, "from 0"), ("mlp_write", 1.0, "from 0")],
)  # fmt: skip
def test_bad_sites_are_refused_by_name(kind, layer, message):
    with pytest.raises(BadInputError, match=message):
        Site(kind, layer)


@pytest.mark.parametrize("kind", SITE_KINDS)
@pytest.mark.parametrize("reads", ["output", "input", "block"])
def test_reads_are_legal_where_the_table_says_so(kind, reads):
    site = Site(kind, None if kind in LAYERLESS else 0)
    if reads in LEGAL_READS[kind]:
        assert Edit(site, left=U, right=U, reads=reads).reads == reads
    else:
        with pytest.raises(BadInputError, match="can read"):
            Edit(site, left=U, right=U, reads=reads)


def test_compose_and_low_rank_refuse_what_is_not_linear():
    gated = Edit(SITE, left=U, right=U, gate="relu")
    with pytest.raises(BadInputError, match="only linear edits"):
        compose([gated])
    with pytest.raises(BadInputError, match="cannot fold"):
        low_rank(EditPlan((gated,)).groups_at(SITE), np.ones((7, 5)), None)
    with pytest.raises(BadInputError, match="no edits to compose"):
        compose([])


def test_plan_refuses_dials_of_objectives_it_does_not_have():
    with pytest.raises(BadInputError, match="'humor'"):
        EditPlan((random_edit(SITE, 7, 7, objective="helpful"),), weights={"humor": 1.0})


def test_a_constant_that_cancels_but_for_rounding_is_what_the_fold_finds():
    """Of sums in tenths that are 0 some are computed as 0, which ones depends on the order, and on the processor."""
    offset, found = np.array([1.0, 2.0, 3.0]), []
    for tenths in range(1, 60):
        for strength in (0.3, 0.7, 1.0):
            left = np.array([[tenths / 10, 0.7, -(tenths + 14) / 30]])
            edit = Edit(Site("attn_write", 0), left=left, right=np.ones((1, 3)), offset=offset, strength=strength)
            change = low_rank([Group(None, 1.0, (edit,))], np.zeros((1, 1)), None)
            assert edit.has_constant == change.needs_bias
            found.append(edit.has_constant)
    assert set(found) == {True, False}
