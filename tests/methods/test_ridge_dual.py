"""The dual form against the primal one, on the same rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from alignez_bake.architectures.architecture import architecture_for
from alignez_bake.capture.run import Capture
from alignez_bake.capture.statistics import ActivationStatistics, Moments, TokenRows
from alignez_bake.errors import BadInputError
from alignez_bake.language_model.loading import load_language_model
from alignez_bake.methods import ridge as ridge_module
from alignez_bake.methods.protocol import MethodSettings
from alignez_bake.methods.ridge import RIDGE, fit_ridge
from alignez_bake.methods.ridge_systems import dual_system, primal_system
from alignez_bake.model_folder import open_model_folder
from alignez_bake.site import Site
from tests.capture.conftest import pairs  # noqa: F401 - a fixture

SITE = Site("mlp_write", 3)


def _rows(n: int, d_in: int, d_out: int, seed: int = 0) -> TokenRows:
    """Inputs of unlike scales with a mean, outputs that depend on them, rows of D weighted, some by nothing."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, d_in)) * np.linspace(0.2, 3, d_in) + rng.normal(size=d_in)
    d = (z @ rng.normal(size=(d_in, d_out)) + rng.normal(size=(n, d_out))) * np.maximum(0, rng.uniform(-0.3, 1, (n, 1)))
    return TokenRows(z.astype(np.float32), d.astype(np.float32), n)


def _moments(rows: TokenRows) -> Moments:
    return Moments.of(rows.z.astype(np.float64), rows.d.astype(np.float64))


SHAPES = [
    (7, 40, 5),  # n < d_in, d_out < n
    (7, 40, 30),  # d_out > n: in the coordinates of P
    (30, 31, 30),
    (2, 50, 60),
    (8, 2100, 9),  # more than one block of columns
]


@pytest.mark.parametrize(("n", "d_in", "d_out"), SHAPES)
@pytest.mark.parametrize("rank", [1, 4, 100])
@pytest.mark.parametrize("penalty", [1e-4, 0.01, 1.0])
def test_both_forms_are_the_same_fit(n: int, d_in: int, d_out: int, rank: int, penalty: float) -> None:
    rows = _rows(n, d_in, d_out)
    rank = min(rank, d_in, d_out)
    dual, primal = (fit_ridge(SITE, given, penalty=penalty, rank=rank) for given in (rows, _moments(rows)))
    assert (dual.form, primal.form) == ("dual", "primal")
    size = np.linalg.norm(primal.right)
    k = dual.left.shape[1]
    assert k == primal.left.shape[1] == min(rank, np.linalg.matrix_rank(rows.d))
    np.testing.assert_allclose(
        dual.contributions, primal.contributions, rtol=1e-8, atol=1e-11 * primal.contributions[0]
    )
    np.testing.assert_allclose(dual.right @ dual.left.T, primal.right @ primal.left.T, atol=1e-8 * size)
    np.testing.assert_allclose(dual.left.T @ dual.left, np.eye(k), atol=1e-10)
    assert dual.explained == pytest.approx(primal.explained, abs=1e-8)
    assert (dual.left[np.abs(dual.left).argmax(axis=0), range(k)] > 0).all()


@pytest.mark.parametrize(("n", "d_in", "d_out"), [*SHAPES, (60, 8, 6), (9, 4, 30)])
def test_the_systems_agree_for_more_tokens_than_inputs_too(n: int, d_in: int, d_out: int) -> None:
    """The choice by size is one of cost: the identity holds for every n."""
    rows = _rows(n, d_in, d_out)
    dual, primal = dual_system(rows, penalty=0.1), primal_system(_moments(rows), penalty=0.1)
    basis = dual.outputs(np.eye(min(n, d_out)))
    scale = np.linalg.norm(primal.fitted)
    np.testing.assert_allclose(basis @ dual.fitted @ basis.T, primal.fitted, atol=1e-8 * scale)
    right = primal.inputs(basis)
    np.testing.assert_allclose(dual.inputs(np.eye(min(n, d_out))), right, atol=1e-8 * np.linalg.norm(right))
    assert dual.energy(right) == pytest.approx(primal.energy(right), rel=1e-8)


def test_explained_is_the_share_of_the_differences_energy() -> None:
    rows = _rows(20, 50, 30)
    fit = fit_ridge(SITE, rows, penalty=0.01, rank=3)
    left = rows.d - rows.z @ fit.right @ fit.left.T
    assert 0 < fit.explained < 1
    assert fit.explained == pytest.approx(
        1 - np.square(left).sum() / np.square(rows.d, dtype=np.float64).sum(), abs=1e-8
    )


def test_rows_of_more_tokens_than_inputs_are_solved_by_their_moments() -> None:
    rows = _rows(60, 8, 6)
    fit, expected = (fit_ridge(SITE, given, penalty=0.01, rank=2) for given in (rows, _moments(rows)))
    assert fit.form == "primal"
    np.testing.assert_allclose(fit.right, expected.right, rtol=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda z, d: (z * 0, d), "inputs are zero"),
        (lambda z, d: (z[:0], d[:0]), "inputs are zero"),
        (lambda z, d: (np.ones_like(z) * z[0], d), "the same at all 9 tokens"),
        (lambda z, d: (z, d * 0), "same under both personas"),
        (lambda z, d: (z, np.where(np.arange(6) == 2, np.nan, d)), "not finite"),
        (lambda z, d: (np.where(np.arange(20) == 2, np.inf, z), d), "not finite"),
    ],
    ids=["zero Z", "no tokens", "constant Z", "zero D", "NaN in D", "infinite Z"],
)
def test_degenerate_rows_are_refused_by_layer(change, message: str) -> None:
    rows = _rows(9, 20, 6)
    z, d = change(rows.z, rows.d)
    with pytest.raises(BadInputError, match=rf"mlp_write\.3.*{message}"):
        fit_ridge(SITE, TokenRows(z.astype(np.float32), d.astype(np.float32), 9), penalty=0.01, rank=2)


def test_a_rank_above_the_widths_is_refused_and_one_above_the_tokens_gives_what_there_is() -> None:
    rows = _rows(3, 20, 6)
    rows = replace(rows, d=rows.z[:, :6])
    with pytest.raises(BadInputError, match=r"mlp_write\.3: rank 7 .* 6 x 20"):
        fit_ridge(SITE, rows, penalty=0.01, rank=7)
    assert fit_ridge(SITE, rows, penalty=0.01, rank=5).left.shape == (6, 3)


class _Planted:
    """Rows where there are few tokens, else moments, as a capture gives them."""

    def __init__(self, rows: TokenRows) -> None:
        self.rows, self.asked = rows, []

    def __call__(self, specs, plan_so_far=None):
        self.asked += specs
        if self.rows.count < self.rows.d_in:
            return ActivationStatistics({}, {}, dict.fromkeys(specs, self.rows))
        return ActivationStatistics({}, dict.fromkeys(specs, _moments(self.rows)))


class TestMethod:
    llama = architecture_for({"model_type": "llama"})

    @pytest.mark.parametrize(("n", "form"), [(20, "dual"), (60, "primal")])
    def test_the_report_says_the_form_and_its_figures_mean_the_same(self, n: int, form: str) -> None:
        rows = _rows(n, 40, 12)
        result = RIDGE.fit(_Planted(rows), self.llama, (0,), MethodSettings())
        figures = result.sites[0].as_json()
        halved = fit_ridge(SITE, replace(rows, d=rows.d / 2), penalty=0.01, rank=4)
        assert (figures["form"], figures["eigenvectors"], figures["tokens"]) == (form, "full", n)
        assert "eigenvectors_residual" not in figures
        assert figures["contributions"] == pytest.approx(halved.contributions)
        assert figures["explained"] == pytest.approx(halved.explained)
        edit = result.edits[0]
        assert figures["edit_norm"] == pytest.approx(2 * np.linalg.norm(edit.left @ edit.right.T))

    def test_eigenvectors_that_were_probed_for_are_reported(self, monkeypatch) -> None:
        probed = []

        def probing(matrix, count, *, seed):
            from alignez_bake.methods.top_eigenpairs import probed_eigenpairs

            probed.append(seed)
            return probed_eigenpairs(matrix, count, seed=seed)

        monkeypatch.setattr(ridge_module, "top_eigenpairs", probing)
        figures = RIDGE.fit(_Planted(_rows(20, 40, 12)), self.llama, (0,), MethodSettings(seed=7)).sites[0].as_json()
        assert figures["eigenvectors"] == "randomised"
        assert 0 < figures["eigenvectors_residual"] <= 1e-9
        assert probed == [7]

    def test_a_sample_is_asked_for_by_the_runs_seed_and_all_tokens_by_none(self) -> None:
        planted = _Planted(_rows(20, 40, 12))
        replace(RIDGE, most_tokens=30).fit(planted, self.llama, (0,), MethodSettings(seed=7))
        RIDGE.fit(planted, self.llama, (0,), MethodSettings(seed=7))
        assert [(spec.most_tokens, spec.seed) for spec in planted.asked] == [(30, 7), (None, 0)]

    def test_another_writer_and_experts(self) -> None:
        mlp = replace(RIDGE, kind="mlp_write")
        assert mlp.sites(self.llama, (0, 2)) == [Site("mlp_write", 0), Site("mlp_write", 2)]
        with pytest.raises(BadInputError, match=r"mlp_write\.0: every expert has an input of its own"):
            mlp.sites(architecture_for({"model_type": "mixtral"}), (0,))

    def test_on_a_live_model_both_forms_are_one_edit(self, tiny_folder, pairs) -> None:  # noqa: F811
        """36 tokens of 75 at 64 inputs: the rows of the sample against the moments of the same sample."""
        lm = load_language_model(open_model_folder(tiny_folder("llama")))
        capture = Capture(lm, pairs, batch_size=3)
        ridge = replace(RIDGE, kind="mlp_write", most_tokens=36)

        def moments_alone(specs, plan_so_far=None):
            found = capture([replace(spec, rows_if_fewer=False) for spec in specs], plan_so_far)
            return ActivationStatistics({}, {spec: found.moments[replace(spec, rows_if_fewer=False)] for spec in specs})

        dual, primal = (
            ridge.fit(given, lm.architecture, (0, 1), MethodSettings(seed=3)) for given in (capture, moments_alone)
        )
        assert [report.figures["form"] for report in (*dual.sites, *primal.sites)] == ["dual"] * 2 + ["primal"] * 2
        for one, two in zip(dual.edits, primal.edits, strict=True):
            expected = two.left @ two.right.T
            np.testing.assert_allclose(one.left @ one.right.T, expected, atol=1e-5 * np.linalg.norm(expected))
