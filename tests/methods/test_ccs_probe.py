"""The CCS probe on planted activations: what it finds, and what it must not depend on."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

from alignez_bake.errors import BadInputError
from alignez_bake.methods.answer_rows import AnswerRows
from alignez_bake.methods.ccs_probe import ccs_loss, ccs_probe, contrast_probe
from alignez_bake.site import Site
from tests.methods.planted import orthonormal

SITE = Site("mlp_write", 4)
PAIRS = 120
WIDTH = 40


class Planted(NamedTuple):
    """Pairs that differ along `normal`, among larger things that do not tell them apart."""

    rows: AnswerRows
    normal: np.ndarray


def planted(seed: int = 0, *, pairs: int = PAIRS, width: int = WIDTH, signal: float = 1.0) -> Planted:
    """Good at +signal, bad at -signal along the normal, with noise.

    Beside it, orthogonal: what both texts of a pair share, three times as wide, in 3 directions; and what each text has
    by itself, 1.5 times as wide, in 2 directions.
    """
    rng = np.random.default_rng(seed)
    basis = orthonormal(rng, width, 6)
    shared = 3.0 * rng.normal(size=(pairs, 3)) @ basis[:, 1:4].T + 5.0 * basis[:, 1]

    def side(sign: float) -> np.ndarray:
        along = sign * signal * basis[:, 0]
        own = 1.5 * rng.normal(size=(pairs, 2)) @ basis[:, 4:].T
        return shared + along + own + 0.2 * rng.normal(size=(pairs, width))

    return Planted(AnswerRows(side(1.0), side(-1.0)), basis[:, 0])


@pytest.mark.parametrize("penalty", [0.0, 0.7])
def test_the_gradient_is_that_of_the_loss(penalty: float) -> None:
    rng = np.random.default_rng(0)
    first, second, place = rng.normal(size=(9, 4)), rng.normal(size=(9, 4)), rng.normal(size=5)
    _, gradient = ccs_loss(place, first, second, penalty)
    steps = 1e-6 * np.eye(5)
    numeric = [
        (ccs_loss(place + step, first, second, penalty)[0] - ccs_loss(place - step, first, second, penalty)[0]) / 2e-6
        for step in steps
    ]
    np.testing.assert_allclose(gradient, numeric, atol=1e-8)


def test_the_loss_is_the_papers_written_out_pair_by_pair() -> None:
    rng = np.random.default_rng(1)
    first, second, place = rng.normal(size=(9, 4)), rng.normal(size=(9, 4)), rng.normal(size=5)
    total = 0.0
    for x, y in zip(first, second, strict=True):
        p, q = (1.0 / (1.0 + np.exp(-(place[:4] @ z + place[4]))) for z in (x, y))
        total += (p - (1.0 - q)) ** 2 + min(p, q) ** 2
    value, _ = ccs_loss(place, first, second)
    assert value == pytest.approx(total / 9, rel=1e-12)
    penalised, _ = ccs_loss(place, first, second, 0.5)
    assert penalised == pytest.approx(total / 9 + 0.5 / 9 * np.sum(place[:4] ** 2), rel=1e-12)


def test_a_constant_costs_a_fifth_and_large_logits_do_not_overflow() -> None:
    zeros = np.zeros((3, 2))
    values = [ccs_loss(np.array([0.0, 0.0, bias]), zeros, zeros)[0] for bias in np.linspace(-3.0, 3.0, 601)]
    assert min(values) == pytest.approx(0.2, abs=1e-5)
    value, gradient = ccs_loss(np.array([1e5, 0.0, 0.0]), np.ones((3, 2)), -np.ones((3, 2)))
    assert value == 0.0
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("seed", range(3))
def test_the_planted_normal_is_found_among_larger_directions(seed: int) -> None:
    rows, normal = planted(seed)
    # The largest direction of the activations, and that of the differences' spread, are others.
    assert abs(np.linalg.svd(rows.good - rows.good.mean(axis=0))[2][0] @ normal) < 0.2
    probe = ccs_probe(SITE, rows, seed=seed)
    assert probe.normal @ normal > 0.97
    assert np.linalg.norm(probe.normal) == pytest.approx(1.0)
    assert probe.accuracy > 0.98
    assert probe.loss < 0.1
    assert probe.consistency > 0.8
    assert probe.confidence > 0.4
    assert probe.why_useless() is None


def test_more_pairs_bring_the_normal_closer_however_wide_the_rows() -> None:
    """Without the penalty the wide case would be met by directions that mean nothing."""
    cosines = []
    for pairs in (40, 80, 160):
        found = [planted(seed, pairs=pairs, width=250, signal=1.5) for seed in range(2)]
        cosines.append(np.mean([ccs_probe(SITE, rows, seed=0).normal @ normal for rows, normal in found]))
    assert cosines[0] < cosines[1] < cosines[2]
    assert cosines[2] > 0.9


def test_swapped_sides_turn_the_normal_and_change_nothing_else() -> None:
    rows, _ = planted()
    probe, swapped = ccs_probe(SITE, rows, seed=0), ccs_probe(SITE, AnswerRows(rows.bad, rows.good), seed=0)
    np.testing.assert_allclose(swapped.normal, -probe.normal, atol=1e-5)
    assert swapped.accuracy == probe.accuracy > 0.9
    assert swapped.loss == pytest.approx(probe.loss, abs=1e-6)


def test_each_class_is_normalised_by_its_own_statistics() -> None:
    """A shift and a scale of one class are what the form of its texts looks like: they change nothing."""
    rows, _ = planted()
    order = np.arange(PAIRS)[:, None] % 2 == 0
    first, second = np.where(order, rows.good, rows.bad), np.where(order, rows.bad, rows.good)
    shift = 10.0 * np.random.default_rng(5).normal(size=WIDTH)
    plain = contrast_probe(SITE, first, second, seed=0)
    moved = contrast_probe(SITE, 3.0 * first + shift, second - shift, seed=0)
    np.testing.assert_allclose(moved.weights, plain.weights, atol=1e-4 * np.linalg.norm(plain.weights))
    assert moved.loss == pytest.approx(plain.loss, abs=1e-7)
    # What is told apart without that: the shift, by far the largest difference.
    assert plain.loss > 1e-4


def test_the_side_is_not_the_class() -> None:
    """With all good answers in one class, normalising would take out what makes them good."""
    rows, normal = planted()
    probe = contrast_probe(SITE, rows.good, rows.bad, seed=0)
    assert abs(probe.weights @ normal) / np.linalg.norm(probe.weights) < 0.7
    assert ccs_probe(SITE, rows, seed=0).normal @ normal > 0.97


def test_the_best_of_several_starts_is_kept() -> None:
    """Along a second, larger direction four pairs in five contrast, by chance of either sign: a poor minimum."""
    rng = np.random.default_rng(0)
    side, other = rng.choice([-1.0, 1.0], size=(2, 100, 1))
    normal, larger = np.eye(4)[:2]
    turned = np.where(np.arange(100)[:, None] < 80, -other, other)
    first = side * normal + 2.0 * other * larger + 0.2 * rng.normal(size=(100, 4))
    second = -side * normal + 2.0 * turned * larger + 0.2 * rng.normal(size=(100, 4))

    def found(seed: int, starts: int) -> tuple[float, float]:
        probe = contrast_probe(SITE, first, second, seed=seed, starts=starts)
        return abs(probe.weights @ normal) / np.linalg.norm(probe.weights), probe.objective

    cosine, objective = min(found(seed, 1) for seed in range(10))
    assert cosine < 0.6
    for seed in range(3):
        best_cosine, best_objective = found(seed, 10)
        assert best_cosine > 0.98
        assert best_objective < objective - 0.05


def test_the_same_seed_gives_the_same_probe_and_sites_draw_their_own() -> None:
    rows, _ = planted()
    probe, again = ccs_probe(SITE, rows, seed=3), ccs_probe(SITE, rows, seed=3)
    np.testing.assert_array_equal(probe.normal, again.normal)
    assert probe.figures() == again.figures()
    other = ccs_probe(Site("mlp_write", 5), rows, seed=3)
    assert (other.normal != probe.normal).any()  # another order within the pairs, another minimum by a little
    np.testing.assert_allclose(other.normal, probe.normal, atol=0.1)


def test_a_probe_that_finds_nothing_says_so() -> None:
    rng = np.random.default_rng(0)
    same = rng.normal(size=(30, 8))
    probe = ccs_probe(SITE, AnswerRows(same, same.copy()), seed=0)
    assert probe.loss == pytest.approx(0.2, abs=1e-6)
    assert probe.confidence == pytest.approx(0.0, abs=1e-6)
    assert "no better than a constant: its loss is 0.200" in str(probe.why_useless())


def test_a_direction_that_has_nothing_to_do_with_the_sides_is_of_no_use() -> None:
    passed = 0
    for seed in range(25):
        rng = np.random.default_rng(seed)
        apart = rng.choice([-1.0, 1.0], size=(40, 1)) * np.array([[2.0, 0.0, 0.0, 0.0, 0.0]])
        good, bad = apart + 0.1 * rng.normal(size=(40, 5)), -apart + 0.1 * rng.normal(size=(40, 5))
        probe = ccs_probe(SITE, AnswerRows(good, bad), seed=0)
        assert probe.confidence > 0.6  # it is certain of something
        assert probe.accuracy >= 0.5
        passed += probe.why_useless() is None
    assert passed <= 4  # of 25, at most 5 % expected
    assert "pairs, which is within chance" in str(probe.why_useless()) or probe.accuracy > 0.6


def test_activations_without_spread_are_refused_by_site() -> None:
    constant = np.full((10, 4), 3.0)
    with pytest.raises(BadInputError, match=r"mlp_write\.4: all activations are the same, .* --layers"):
        ccs_probe(SITE, AnswerRows(constant, constant), seed=0)
    with pytest.raises(BadInputError, match=r"mlp_write\.4: a CCS probe needs at least 2 pairs, and there is 1"):
        ccs_probe(SITE, AnswerRows(constant[:1], 2 * constant[:1]), seed=0)


def test_sides_that_are_each_constant_are_told_apart() -> None:
    good, bad = np.tile([1.0, 2.0, 0.0], (10, 1)), np.tile([1.0, 0.0, 0.0], (10, 1))
    probe = ccs_probe(SITE, AnswerRows(good, bad), seed=0)
    np.testing.assert_allclose(probe.normal, [0.0, 1.0, 0.0], atol=1e-6)
    assert probe.accuracy == 1.0
