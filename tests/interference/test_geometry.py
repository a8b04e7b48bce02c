"""Figures of overlap against what the dense matrices say, and against planted answers."""

from __future__ import annotations

import numpy as np
import pytest

from alignez_bake.edit import Edit, compose
from alignez_bake.edit_plan import EditPlan
from alignez_bake.interference.geometry import overlaps, principal_cosines, site_factors
from alignez_bake.site import Site
from tests.random_edits import random_edit

SITE, NEXT = Site("attn_write", 0), Site("attn_write", 1)


def dense(edit):
    """strength · [L Rᵀ, L s + c], by hand."""
    constant = (0 if edit.offset is None else edit.left @ edit.offset) + (0 if edit.bias is None else edit.bias)
    return edit.strength * np.column_stack([edit.left @ edit.right.T, np.broadcast_to(constant, edit.d_out)])


def cosine(one, other):
    return np.sum(one * other) / np.linalg.norm(one) / np.linalg.norm(other)


def two(one, other, **dials):
    (found,) = overlaps(EditPlan((*one, *other), weights=dials))
    return found


def edits(objective, seed, **settings):
    return [
        random_edit(site, 12, 9, reads="input", rank=3, seed=seed + place, objective=objective, **settings).scaled(1.5)
        for place, site in enumerate((SITE, NEXT))
    ]


@pytest.mark.parametrize("constant", [False, True])
def test_the_cosine_is_that_of_the_dense_matrices(constant):
    one, other = edits("a", 1, constant=constant), edits("b", 5, constant=constant)
    found = two(one, other)
    for site, mine, theirs in zip(found.sites, one, other, strict=True):
        assert site.edit_cosine == pytest.approx(cosine(dense(mine), dense(theirs)), rel=1e-9)
    stacked = [np.stack([dense(edit) for edit in each]) for each in (one, other)]
    assert found.edit_cosine == pytest.approx(cosine(*stacked), rel=1e-9)
    assert abs(found.edit_cosine) > 1e-3


def test_planted_angles_between_subspaces():
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(10, 10)))[0]
    angle = 0.3
    one = basis[:, :2] @ rng.normal(size=(2, 2))
    turned = np.column_stack([np.cos(angle) * basis[:, 0] + np.sin(angle) * basis[:, 2], basis[:, 3]])
    assert principal_cosines(one, turned @ rng.normal(size=(2, 2))) == pytest.approx((np.cos(angle), 0.0), abs=1e-12)
    assert principal_cosines(one, one[:, :1]) == pytest.approx((1.0,))
    assert principal_cosines(one, np.zeros((10, 2))) == ()


def test_what_is_written_and_what_is_read_are_told_apart():
    rng = np.random.default_rng(1)
    left, right = np.linalg.qr(rng.normal(size=(8, 4)))[0], np.linalg.qr(rng.normal(size=(6, 4)))[0]
    one = Edit(SITE, left=left[:, :2], right=right[:, :2], reads="input", objective="a")
    other = Edit(SITE, left=left[:, :2], right=right[:, 2:], reads="input", objective="b")
    found = two([one], [other])
    assert found.output_cosine == pytest.approx(1.0)
    assert found.input_cosine == pytest.approx(0.0, abs=1e-12)
    assert found.edit_cosine == pytest.approx(0.0, abs=1e-12)


def test_dials_turn_the_sign_and_say_what_is_left():
    one, other = edits("a", 1), edits("a", 1)
    other = [Edit(e.site, e.left, e.right, reads="input", strength=e.strength, objective="b") for e in other]
    same = two(one, other, a=1.0, b=2.0)
    assert (same.edit_cosine, same.at_dials, same.kept_at_dials) == pytest.approx((1, 1, 1))
    apart = two(one, other, a=1.0, b=-2.0)
    assert (apart.edit_cosine, apart.at_dials, apart.kept_at_dials) == pytest.approx((1, -1, 1 / 3))
    assert two(one, other, a=0.0, b=1.0).at_dials is None


def test_no_matrix_of_full_size_is_made():
    """At a width of 40000 ΔW would take 12 GB."""
    rng = np.random.default_rng(0)
    made = [
        Edit(SITE, left=rng.normal(size=(40_000, 2)), right=rng.normal(size=(40_000, 2)), reads="input", objective=name)
        for name in "ab"
    ]
    assert abs(two(made[:1], made[1:]).edit_cosine) < 0.05


def test_entries_that_read_the_output_are_composed():
    chain = [random_edit(SITE, 7, 7, seed=seed) for seed in (1, 2)]
    factors = site_factors(chain)
    whole = compose(chain)
    assert factors.left @ factors.right[:-1].T == pytest.approx(whole.left @ whole.right.T)
    assert not np.allclose(factors.left @ factors.right[:-1].T, sum(edit.left @ edit.right.T for edit in chain))


def test_shifts_and_maps_that_read_different_things():
    rng = np.random.default_rng(2)
    bias = rng.normal(size=7)
    shifts = [Edit(SITE, bias=scale * bias, objective=name) for name, scale in (("a", 1.0), ("b", -3.0))]
    found = two(shifts[:1], shifts[1:])
    assert found.edit_cosine == pytest.approx(-1.0)
    assert found.input_cosine is None
    apart = two([random_edit(SITE, 7, 7, objective="a")], [random_edit(SITE, 7, 5, reads="input", objective="b")])
    assert apart.sites[0].edit_cosine is None
    assert len(apart.sites[0].output_cosines) == 2


def test_one_objective_or_none_overlaps_with_nothing():
    assert overlaps(EditPlan(tuple(edits("a", 1)))) == ()
    assert overlaps(EditPlan(())) == ()
    elsewhere = [random_edit(Site("mlp_write", 0), 12, 9, reads="input", objective="b")]
    found = two(edits("a", 1), elsewhere)
    assert (found.edit_cosine, found.sites) == (None, ())
