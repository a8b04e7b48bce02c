"""The closed form against independent formulations that hold all rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

from alignez_bake.architectures.architecture import architecture_for
from alignez_bake.capture.spec import MomentsSpec
from alignez_bake.capture.statistics import Moments
from alignez_bake.errors import BadInputError
from alignez_bake.methods.protocol import MethodSettings
from alignez_bake.methods.ridge import RIDGE, RidgeFit, fit_ridge
from alignez_bake.site import Site
from tests.methods.planted import PlantedMoments, edited, orthonormal

SITE = Site("attn_write", 3)
LLAMA = architecture_for({"model_type": "llama"})


def _rows(seed: int, n: int = 60, d_in: int = 8, d_out: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, d_in)) * np.linspace(0.2, 3, d_in) + rng.normal(size=d_in)
    return z, z @ rng.normal(size=(d_in, d_out)) + rng.normal(size=(n, d_out))


def _map(fit: RidgeFit) -> np.ndarray:
    return fit.right @ fit.left.T


def _augmented(z: np.ndarray, d: np.ndarray, penalty: float) -> tuple[np.ndarray, np.ndarray]:
    mu = penalty * np.mean(np.square(z).sum(axis=0))
    return np.vstack([z, np.sqrt(mu) * np.eye(z.shape[1])]), np.vstack([d, np.zeros((z.shape[1], d.shape[1]))])


@settings(deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([1e-4, 0.01, 1.0]))
def test_full_rank_is_least_squares_on_augmented_rows(seed: int, penalty: float) -> None:
    z, d = _rows(seed)
    fit = fit_ridge(SITE, Moments.of(z, d), penalty=penalty, rank=6)
    solution = np.linalg.lstsq(*_augmented(z, d, penalty), rcond=None)[0]
    np.testing.assert_allclose(_map(fit), solution, rtol=1e-8, atol=1e-8)


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 5), st.sampled_from([0.01, 1.0]))
def test_lower_rank_is_the_truncated_svd_of_the_fitted_values(seed: int, rank: int, penalty: float) -> None:
    z, d = _rows(seed)
    fit = fit_ridge(SITE, Moments.of(z, d), penalty=penalty, rank=rank)
    z_tilde, d_tilde = _augmented(z, d, penalty)
    fitted = z_tilde @ np.linalg.lstsq(z_tilde, d_tilde, rcond=None)[0]
    u, s, vt = scipy.linalg.svd(fitted, full_matrices=False)
    np.testing.assert_allclose(z_tilde @ _map(fit), (u[:, :rank] * s[:rank]) @ vt[:rank], atol=1e-7 * s[0])
    np.testing.assert_allclose(fit.contributions, np.square(s[:rank]), rtol=1e-8)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32))
def test_no_map_of_that_rank_is_better(seed: int) -> None:
    z, d = _rows(seed, n=30, d_in=4, d_out=3)
    z_tilde, d_tilde = _augmented(z, d, 0.1)
    fit = fit_ridge(SITE, Moments.of(z, d), penalty=0.1, rank=1)

    def loss(flat: np.ndarray) -> float:
        return float(np.square(d_tilde - z_tilde @ np.outer(flat[:4], flat[4:])).sum())

    ours = loss(np.concatenate([fit.right[:, 0], fit.left[:, 0]]))
    rng = np.random.default_rng(seed)
    found = min(scipy.optimize.minimize(loss, rng.normal(size=7)).fun for _ in range(3))
    assert ours <= found * (1 + 1e-9)


@settings(deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 6))
def test_explained_is_the_share_of_the_differences_energy(seed: int, rank: int) -> None:
    z, d = _rows(seed)
    fit = fit_ridge(SITE, Moments.of(z, d), penalty=0.01, rank=rank)
    assert fit.explained == pytest.approx(1 - np.square(d - z @ _map(fit)).sum() / np.square(d).sum(), abs=1e-10)


@settings(deadline=None)
@given(st.integers(0, 2**32))
def test_columns_are_sorted_so_that_a_lower_rank_is_a_slice(seed: int) -> None:
    moments = Moments.of(*_rows(seed))
    four, two = (fit_ridge(SITE, moments, penalty=0.01, rank=rank) for rank in (4, 2))
    assert (np.diff(four.contributions) <= 0).all()
    np.testing.assert_allclose(four.left[:, :2], two.left, atol=1e-9)
    np.testing.assert_allclose(four.right[:, :2], two.right, atol=1e-9)
    np.testing.assert_allclose(four.left.T @ four.left, np.eye(4), atol=1e-10)
    assert (four.left[np.abs(four.left).argmax(axis=0), range(4)] > 0).all()


def test_a_planted_map_is_recovered() -> None:
    rng = np.random.default_rng(0)
    planted = orthonormal(rng, 8, 2) @ np.diag([3.0, 1.0]) @ orthonormal(rng, 6, 2).T
    z = rng.normal(size=(4000, 8))
    d = z @ planted + 0.1 * rng.normal(size=(4000, 6))
    fit = fit_ridge(SITE, Moments.of(z, d), penalty=1e-6, rank=2)
    assert np.linalg.norm(_map(fit) - planted) < 0.02 * np.linalg.norm(planted)


def test_moments_of_parts_give_the_fit_of_the_whole() -> None:
    z, d = _rows(5)
    parts = Moments.of(z[:17], d[:17]).merged_with(Moments.of(z[17:], d[17:]))
    np.testing.assert_allclose(
        _map(fit_ridge(SITE, parts, penalty=0.01, rank=3)),
        _map(fit_ridge(SITE, Moments.of(z, d), penalty=0.01, rank=3)),
        atol=1e-10,
    )


def test_a_difference_of_rank_one_gives_one_column() -> None:
    z, _ = _rows(0)
    d = np.outer(z @ np.arange(8.0), np.arange(1.0, 7.0))
    assert fit_ridge(SITE, Moments.of(z, d), penalty=0.01, rank=4).left.shape == (6, 1)


def test_fewer_tokens_than_inputs_are_enough() -> None:
    z, d = _rows(0, n=3)
    fit = fit_ridge(SITE, Moments.of(z, d), penalty=0.01, rank=4)
    assert fit.left.shape == (6, 3)
    assert np.isfinite(fit.right).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda z, d: (z * 0, d), "inputs are zero"),
        (lambda z, d: (z[:0], d[:0]), "inputs are zero"),
        (lambda z, d: (np.ones_like(z) * z[0], d), "the same at all 60 tokens"),
        (lambda z, d: (z, d * 0), "same under both personas"),
        (lambda z, d: (z, np.where(np.arange(6) == 2, np.nan, d)), "not finite"),
        (lambda z, d: (np.where(np.arange(8) == 2, np.inf, z), d), "not finite"),
        (lambda z, d: (z, d - z @ np.linalg.lstsq(z, d, rcond=None)[0]), "predict nothing"),
    ],
    ids=["zero Z", "no tokens", "constant Z", "zero D", "NaN in D", "infinite Z", "unpredictable D"],
)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_degenerate_statistics_are_refused_by_layer(change, message: str) -> None:
    z, d = change(*_rows(1))
    with pytest.raises(BadInputError, match=rf"attn_write\.3.*{message}"):
        fit_ridge(SITE, Moments.of(z, d), penalty=0.01, rank=2)


def test_a_rank_above_the_widths_is_refused() -> None:
    with pytest.raises(BadInputError, match=r"attn_write\.3: rank 7 .* 6 x 8"):
        fit_ridge(SITE, Moments.of(*_rows(1)), penalty=0.01, rank=7)


class TestMethod:
    planted = PlantedMoments({Site("attn_write", layer): _rows(layer) for layer in (0, 2, 5)})

    def test_gamma_two_adds_the_whole_fitted_difference(self) -> None:
        result = RIDGE.fit(self.planted, LLAMA, (0, 2), MethodSettings(rank=6, objective="helpful"))
        for edit in result.edits:
            z, d = self.planted.pairs[edit.site]
            assert (edit.reads, edit.gate, edit.strength, edit.objective) == ("input", "identity", 2.0, "helpful")
            fitted = z @ np.linalg.lstsq(*_augmented(z, d, 0.01), rcond=None)[0]
            np.testing.assert_allclose(edited(np.zeros_like(d), [edit], z), fitted, atol=1e-8)

    def test_strength_is_gamma_and_changes_nothing_else(self) -> None:
        one, default = (RIDGE.fit(self.planted, LLAMA, (0,), MethodSettings(strength=s)).edits[0] for s in (1.0, None))
        assert (one.strength, default.strength) == (1.0, 2.0)
        assert replace(one, strength=2.0).equals(default)

    def test_it_asks_for_the_same_tokens_in_three_contexts(self) -> None:
        planted = PlantedMoments(self.planted.pairs)
        RIDGE.fit(planted, LLAMA, (5,), MethodSettings())
        (spec,) = planted.asked
        assert isinstance(spec, MomentsSpec)
        assert [tuple(reading) for reading in spec.readings] == [
            ("plain", "input"),
            ("good", "output"),
            ("bad", "output"),
        ]
        assert (spec.site, spec.answer, spec.tokens) == (Site("attn_write", 5), "good", "shared")
        assert spec.weight == "disagreement"

    def test_the_report_is_json_and_matches_the_edits(self) -> None:
        import json

        result = RIDGE.fit(self.planted, LLAMA, (0, 2), MethodSettings())
        for edit, report in zip(result.edits, result.sites, strict=True):
            figures = json.loads(json.dumps(report.as_json()))
            assert figures["site"] == str(edit.site)
            assert figures["rank"] == edit.rank == 4
            assert figures["tokens"] == 60
            assert 0 < figures["explained"] < 1
            assert figures["edit_norm"] == pytest.approx(2 * np.linalg.norm(edit.left @ edit.right.T))
            z, d = self.planted.pairs[edit.site]
            halved = fit_ridge(edit.site, Moments.of(z, d / 2), penalty=0.01, rank=4)
            assert figures["contributions"] == pytest.approx(halved.contributions)
            assert figures["explained"] == pytest.approx(halved.explained)

    def test_the_default_rank_gives_way_in_narrow_models_but_an_explicit_one_does_not(self) -> None:
        narrow = PlantedMoments({Site("attn_write", 0): _rows(0, d_in=3, d_out=3)})
        assert RIDGE.fit(narrow, LLAMA, (0,), MethodSettings()).edits[0].rank == 3
        with pytest.raises(BadInputError, match="rank 4"):
            RIDGE.fit(narrow, LLAMA, (0,), MethodSettings(rank=4))
