"""alignez_v2 with its own gates, pooled sign filter and top layers, on planted activations."""

from __future__ import annotations

import json

import numpy as np
import pytest

from alignez_bake.architectures.architecture import architecture_for
from alignez_bake.errors import BadInputError
from alignez_bake.methods.alignez_v1 import ALIGNEZ_V1
from alignez_bake.methods.alignez_v2 import ALIGNEZ_V2
from alignez_bake.methods.protocol import FitResult, MethodSettings
from alignez_bake.methods.registry import METHODS, check_offered
from alignez_bake.methods.ridge import RIDGE
from alignez_bake.site import Site
from tests.methods.planted import WIDTH, PlantedRows, edited, orthonormal

LLAMA = architecture_for({"model_type": "llama"})
PAIRS = 200
LAYERS = (0, 1, 2, 3)
SITES = tuple(Site("mlp_write", layer) for layer in LAYERS)


class Planted:
    """At each site three directions of the differences: half of the pairs agree along the first, three in four along
    the others.

    More is not possible: singular vectors have orthogonal coefficients over the pairs, and two rows of signs with
    Σ s_i t_i = 0 are positive three times in four each at best.

    Attributes:
        bases: by site [d, 3], strongest first.
        noise: by site, of the differences; the less of it, the larger the layer's score.
    """

    def __init__(self, seed: int = 0, noise: tuple[float, ...] = (0.1,) * len(LAYERS)) -> None:
        rng = np.random.default_rng(seed)
        self.bases = {site: orthonormal(rng, WIDTH, 3) for site in SITES}
        self.noise = dict(zip(SITES, noise, strict=True))
        patterns = np.array([[1, 1, 1], [-1, 1, 1], [1, 1, -1], [-1, 1, -1], [1, -1, 1], [-1, -1, 1]])
        signs = np.repeat(patterns, [50, 50, 25, 25, 25, 25], axis=0)
        assert len(signs) == PAIRS
        rows = {}
        for site, basis in self.bases.items():
            lengths = rng.uniform(0.9, 1.1, (PAIRS, 3)) * [6.0, 4.0, 2.5]
            halves = (signs * lengths) @ basis.T / 2 + self.noise[site] * rng.normal(size=(PAIRS, WIDTH))
            rows[site] = (halves, -halves)
        self.capture = PlantedRows(rows)

    def fit(self, layers: tuple[int, ...] = LAYERS, **settings: object) -> FitResult:
        """The gated fit."""
        return ALIGNEZ_V2.fit(self.capture, LLAMA, layers, MethodSettings(gated=True, **settings))


def by_the_paper(rows: np.ndarray, good: np.ndarray, strength: float) -> np.ndarray:
    """Row by row and direction by direction: x - Σ a relu(<x, u>) u with u = -v, then x + Σ a tanh(<x, v>) v."""
    result = []
    for x in rows:
        removed = x - sum(strength * max(float(x @ -v), 0.0) * -v for v in good.T)
        result.append(removed + sum(strength * np.tanh(removed @ v) * v for v in good.T))
    return np.stack(result)


@pytest.mark.parametrize("strength", [1.0, 0.4, 2.5])
def test_the_edits_of_a_layer_are_the_papers_operators_in_their_order(strength: float) -> None:
    result = Planted().fit(strength=strength)
    rows = 3.0 * np.random.default_rng(1).normal(size=(40, WIDTH))
    for site in SITES:
        chain = [edit for edit in result.edits if edit.site == site]
        assert [edit.gate for edit in chain] == ["relu", "tanh"]
        expected = by_the_paper(rows, chain[1].left, strength)
        np.testing.assert_allclose(edited(rows, chain), expected, rtol=0, atol=1e-12)
        assert np.linalg.norm(expected - rows) > 1e-2 * np.linalg.norm(rows)
        # The order tells: boosting first pushes further to the bad side what is then removed in part.
        if strength != 1.0:
            assert np.linalg.norm(edited(rows, chain[::-1]) - expected) > 1e-3 * np.linalg.norm(rows)


def test_chains_follow_each_other_layer_by_layer() -> None:
    result = Planted().fit(objective="harmless")
    assert [edit.site for edit in result.edits] == [site for site in SITES for _ in range(2)]
    assert {edit.objective for edit in result.edits} == {"harmless"}
    assert {edit.positions for edit in result.edits} == {"all"}


def test_what_points_to_the_bad_side_goes_and_what_points_to_the_good_side_stays_and_grows() -> None:
    planted = Planted()
    chain = planted.fit(layers=(0,)).edits
    good = planted.bases[SITES[0]][:, 1:]
    good = good * np.sign((planted.capture.rows[SITES[0]][0] @ good).mean(axis=0))
    np.testing.assert_allclose(edited(-2.0 * good.T, list(chain)), np.zeros((2, WIDTH)), atol=0.05)
    np.testing.assert_allclose(edited(2.0 * good.T, list(chain)), (2.0 + np.tanh(2.0)) * good.T, atol=0.05)


def test_the_direction_without_a_sign_is_dropped_and_the_report_says_so() -> None:
    planted = Planted()
    result = planted.fit()
    for report, (site, basis) in zip(result.sites, planted.bases.items(), strict=True):
        chain = [edit for edit in result.edits if edit.site == site]
        assert {edit.rank for edit in chain} == {2}
        kept = chain[1].left @ chain[1].left.T
        assert np.linalg.norm(kept @ basis[:, 0]) < 0.1
        np.testing.assert_allclose(kept @ basis[:, 1:], basis[:, 1:], atol=0.1)
        figures = report.as_json()
        assert figures["dropped"].startswith("1 of 3 directions dropped: fewer than ")
        assert [share > 0.7 for share in figures["agreeing"]] == [False, True, True]
        assert figures["rank"] == len(figures["energies"]) == 2
        assert 0 < figures["score"] < 1
    json.dumps([report.as_json() for report in result.sites], allow_nan=False)


def test_over_seeds_no_planted_direction_is_dropped_by_mistake() -> None:
    drops = 0
    for seed in range(50):
        planted = Planted(seed, noise=(0.3,) * len(LAYERS))
        result = planted.fit()
        for site, basis in planted.bases.items():
            kept = next(edit.left for edit in result.edits if edit.site == site and edit.gate == "tanh")
            along = np.linalg.norm(kept.T @ basis, axis=0)
            assert along[0] < 0.5
            drops += int(np.count_nonzero(along[1:] < 0.9))
    assert drops <= 4  # of 400: 1 %


def test_the_linear_form_asks_for_no_sign() -> None:
    planted = Planted()
    result = ALIGNEZ_V2.fit(planted.capture, LLAMA, LAYERS, MethodSettings())
    assert [(edit.gate, edit.rank) for edit in result.edits] == [("identity", 3)] * len(LAYERS)
    assert "agreeing" not in result.sites[0].as_json()


def test_top_layers_are_the_planted_ones() -> None:
    planted = Planted(noise=(0.5, 0.05, 0.8, 0.25))
    everything = planted.fit()
    scores = [report.as_json()["score"] for report in everything.sites]
    assert np.argsort(scores).tolist() == [2, 0, 3, 1]
    for count, chosen in ((1, {1}), (2, {1, 3}), (3, {0, 1, 3})):
        result = planted.fit(top_layers=count)
        assert {edit.site.layer for edit in result.edits} == chosen
        for report, score in zip(result.sites, scores, strict=True):
            figures = report.as_json()
            assert figures["score"] == score
            skipped = None if report.site.layer in chosen else f"its score is not among the {count} largest"
            assert figures.get("skipped") == skipped
    linear = ALIGNEZ_V2.fit(planted.capture, LLAMA, LAYERS, MethodSettings(top_layers=1))
    assert [edit.site.layer for edit in linear.edits] == [1]


def test_auto_takes_the_layers_above_the_largest_drop_of_the_score() -> None:
    planted = Planted(noise=(0.9, 0.05, 0.8, 0.1))
    result = planted.fit(top_layers="auto")
    assert {edit.site.layer for edit in result.edits} == {1, 3}
    skipped = [report.skipped for report in result.sites]
    assert skipped == ["its score lies below the largest drop", None, "its score lies below the largest drop", None]


def test_a_layer_without_a_direction_leaves_its_place_to_the_next() -> None:
    planted = Planted(noise=(0.5, 0.05, 0.8, 0.25))
    good, bad = planted.capture.rows[SITES[1]]
    flipped = np.where(np.arange(PAIRS)[:, None] % 2 == 0, good, bad)
    planted.capture.rows[SITES[1]] = (flipped, -flipped)
    result = planted.fit(top_layers=2)
    assert {edit.site.layer for edit in result.edits} == {0, 3}
    assert "agree in sign along no direction: " in str(result.sites[1].skipped)
    with pytest.raises(BadInputError, match=r"no layer with directions to edit: mlp_write\.1: the pairs agree in sign"):
        planted.fit(layers=(1,))


def test_five_pairs_tell_no_sign() -> None:
    planted = Planted()
    planted.capture.rows = {site: (good[:5], bad[:5]) for site, (good, bad) in planted.capture.rows.items()}
    with pytest.raises(BadInputError, match=r"5 of 5 pairs have a cosine of at most 0\.8, 6 are needed"):
        planted.fit()
    assert ALIGNEZ_V2.fit(planted.capture, LLAMA, LAYERS, MethodSettings()).edits


def test_both_versions_say_what_they_froze() -> None:
    planted = Planted()
    linear = ALIGNEZ_V2.fit(planted.capture, LLAMA, LAYERS, MethodSettings())
    for result in (planted.fit(), linear, ALIGNEZ_V1.fit(planted.capture, LLAMA, LAYERS, MethodSettings())):
        (note,) = result.notes
        assert "anew for each query, which weights cannot: here all pairs are pooled" in note
    assert "test of signs" in planted.fit().notes[0]
    assert "test of signs" not in linear.notes[0]


def test_settings_without_a_use_are_refused_by_the_names_that_have_one() -> None:
    for method in METHODS.values():
        check_offered(method, MethodSettings())
    check_offered(ALIGNEZ_V2, MethodSettings(gated=True, top_layers=3))
    with pytest.raises(
        BadInputError, match=r"'ridge' has no gates, so --gated means nothing for it: use .* alignez_v2"
    ):
        check_offered(RIDGE, MethodSettings(gated=True))
    with pytest.raises(BadInputError, match=r"'ridge' does not score layers, .* with alignez_v1, alignez_v2, ccs, or"):
        check_offered(RIDGE, MethodSettings(top_layers=1))
    with pytest.raises(BadInputError, match="top layers 0 is not possible"):
        MethodSettings(top_layers=0)
