"""Each operator against its formula in projectors, not against its own L and R."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignez_bake.edit import compose
from alignez_bake.errors import BadInputError
from alignez_bake.methods import operators
from alignez_bake.site import Site
from tests.methods.planted import edited, orthonormal

SITE = Site("mlp_write", 1)
WIDTH = 9


@st.composite
def bases(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    bad = orthonormal(rng, WIDTH, draw(st.integers(1, 4)))
    good = orthonormal(rng, WIDTH, draw(st.integers(1, 4)))
    return rng.normal(size=(5, WIDTH)), bad, good, draw(st.floats(-3, 3))


@settings(deadline=None)
@given(bases())
def test_the_linear_operators_are_their_projector_products(case: tuple) -> None:
    rows, bad, good, a = case
    identity, p, q = np.eye(WIDTH), bad @ bad.T, good @ good.T
    removed = edited(rows, [operators.remove(SITE, bad)])
    np.testing.assert_allclose(removed, rows @ (identity - p), atol=1e-12)
    boosted = edited(rows, [operators.boost(SITE, good, a)])
    np.testing.assert_allclose(boosted, rows @ (identity + a * q), atol=1e-12)
    both = edited(rows, [operators.remove_then_boost(SITE, bad, good, a)])
    np.testing.assert_allclose(both, rows @ ((identity + a * q) @ (identity - p)).T, atol=1e-12)


@settings(deadline=None)
@given(bases())
def test_remove_then_boost_is_the_two_in_sequence(case: tuple) -> None:
    rows, bad, good, a = case
    sequence = [operators.remove(SITE, bad), operators.boost(SITE, good, a)]
    one = edited(rows, [operators.remove_then_boost(SITE, bad, good, a)])
    np.testing.assert_allclose(one, edited(rows, sequence), atol=1e-12)
    np.testing.assert_allclose(one, edited(rows, [compose(sequence)]), atol=1e-12)


def test_the_sum_of_the_two_is_something_else() -> None:
    rng = np.random.default_rng(0)
    rows, bad, good = rng.normal(size=(5, WIDTH)), orthonormal(rng, WIDTH, 2), orthonormal(rng, WIDTH, 2)
    total = edited(rows, [operators.remove(SITE, bad)]) + edited(rows, [operators.boost(SITE, good, 1.0)]) - rows
    assert np.abs(edited(rows, [operators.remove_then_boost(SITE, bad, good, 1.0)]) - total).max() > 0.1


@settings(deadline=None)
@given(bases())
def test_the_gated_operators_are_their_formulas(case: tuple) -> None:
    rows, bad, good, a = case
    one_sided = edited(rows, [operators.one_sided_removal(SITE, bad, a)])
    np.testing.assert_allclose(one_sided, rows - a * np.maximum(rows @ bad, 0) @ bad.T, atol=1e-12)
    bounded = edited(rows, [operators.bounded_boost(SITE, good, a)])
    np.testing.assert_allclose(bounded, rows + a * np.tanh(rows @ good) @ good.T, atol=1e-12)


def test_shift_adds_the_same_everywhere_and_names_its_objective() -> None:
    rng = np.random.default_rng(0)
    rows, step = rng.normal(size=(5, WIDTH)), rng.normal(size=WIDTH)
    edit = operators.shift(SITE, step, 1.5, objective="helpful")
    assert (edit.objective, edit.rank) == ("helpful", 0)
    np.testing.assert_allclose(edited(rows, [edit]), rows + 1.5 * step, atol=1e-12)


@pytest.mark.parametrize("scale", [1.001, 0.0, np.nan])
def test_directions_that_are_not_orthonormal_are_refused(scale: float) -> None:
    basis = orthonormal(np.random.default_rng(0), WIDTH, 2)
    for build in (
        lambda bad: operators.remove(SITE, bad),
        lambda bad: operators.boost(SITE, bad, 1.0),
        lambda bad: operators.remove_then_boost(SITE, bad, basis, 1.0),
        lambda bad: operators.remove_then_boost(SITE, basis, bad, 1.0),
        lambda bad: operators.one_sided_removal(SITE, bad, 1.0),
        lambda bad: operators.bounded_boost(SITE, bad, 1.0),
    ):
        with pytest.raises(BadInputError, match="orthonormal"):
            build(basis * scale)


def test_float32_bases_pass_and_vectors_do_not() -> None:
    basis = orthonormal(np.random.default_rng(0), WIDTH, 2)
    assert operators.remove(SITE, basis.astype(np.float32)).rank == 2
    with pytest.raises(BadInputError, match="columns of a matrix"):
        operators.remove(SITE, basis[:, 0])
