"""alignez_v1, alignez_v2, ccs, mean_difference and shift on planted activations."""

from __future__ import annotations

import json

import numpy as np
import pytest

from alignez_bake.architectures.architecture import architecture_for
from alignez_bake.capture.spec import Reading, RowsSpec
from alignez_bake.errors import BadInputError
from alignez_bake.methods.alignez_v1 import ALIGNEZ_V1
from alignez_bake.methods.alignez_v2 import ALIGNEZ_V2, kept_differences
from alignez_bake.methods.answer_rows import AnswerRows
from alignez_bake.methods.ccs import CCS
from alignez_bake.methods.mean_difference import MEAN_DIFFERENCE
from alignez_bake.methods.protocol import Method, MethodSettings
from alignez_bake.methods.shift import SHIFT
from alignez_bake.site import Site
from tests.methods.planted import LAYERS, WIDTH, PlantedRows, edited, orthonormal

LLAMA = architecture_for({"model_type": "llama"})
METHODS: tuple[Method, ...] = (ALIGNEZ_V1, ALIGNEZ_V2, CCS, MEAN_DIFFERENCE, SHIFT)
SITES = tuple(Site("mlp_write", layer) for layer in LAYERS)


def _planted(seed: int = 0, n: int = 50) -> tuple[PlantedRows, dict[Site, np.ndarray]]:
    """Per site good rows around +3g and bad rows around -3b with g, b orthogonal, and the basis [g, b]."""
    rng = np.random.default_rng(seed)
    bases = {site: orthonormal(rng, WIDTH, 2) for site in SITES}
    rows = {
        site: (
            3.0 * basis[:, 0] + 0.1 * rng.normal(size=(n, WIDTH)),
            -3.0 * basis[:, 1] + 0.1 * rng.normal(size=(n, WIDTH)),
        )
        for site, basis in bases.items()
    }
    return PlantedRows(rows), bases


def _share_along(direction: np.ndarray, column: np.ndarray) -> float:
    return float(abs(direction @ column) / np.linalg.norm(column))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_method_asks_for_the_last_token_of_both_answers(method: Method) -> None:
    planted, _ = _planted()
    result = method.fit(planted, LLAMA, LAYERS, MethodSettings(objective="harmless"))
    output = Reading("plain", "output")
    assert set(planted.asked) == {RowsSpec(site, output, side, "last") for site in SITES for side in ("good", "bad")}
    assert method.sites(LLAMA, LAYERS) == list(SITES)
    assert {edit.site for edit in result.edits} == set(SITES)
    assert {edit.objective for edit in result.edits} == {"harmless"}
    assert [report.site for report in result.sites] == list(SITES)
    json.dumps([report.as_json() for report in result.sites], allow_nan=False)
    assert method.needs_bias == any(edit.bias is not None for edit in result.edits)
    assert all(edit.is_linear and edit.reads == "output" for edit in result.edits)


def test_v1_removes_what_bad_answers_share_and_boosts_what_good_ones_share() -> None:
    planted, bases = _planted()
    result = ALIGNEZ_V1.fit(planted, LLAMA, LAYERS, MethodSettings(strength=0.5))
    for site, basis in bases.items():
        edits = [edit for edit in result.edits if edit.site == site]
        moved = edited(basis.T, edits)
        np.testing.assert_allclose(moved[0], 1.5 * basis[:, 0], atol=0.05)
        np.testing.assert_allclose(moved[1], 0.0 * basis[:, 1], atol=0.05)


def test_v1_uses_uncentred_top_singular_vectors() -> None:
    planted, _ = _planted()
    result = ALIGNEZ_V1.fit(planted, LLAMA, LAYERS, MethodSettings(rank=3))
    good, bad = planted.rows[SITES[0]]
    remove, boost = result.edits[:2]
    for edit, rows in ((remove, bad), (boost, good)):
        top = np.linalg.svd(rows)[2][:3]
        np.testing.assert_allclose(edit.right @ edit.right.T, top.T @ top, atol=1e-10)


def test_v1_refuses_a_rank_that_the_rows_do_not_span() -> None:
    planted, _ = _planted(n=4)
    with pytest.raises(BadInputError, match=r"mlp_write\.0: rank 5"):
        ALIGNEZ_V1.fit(planted, LLAMA, LAYERS, MethodSettings(rank=5))


def test_v2_boosts_the_planted_difference() -> None:
    planted, bases = _planted()
    result = ALIGNEZ_V2.fit(planted, LLAMA, LAYERS, MethodSettings())
    for edit, basis in zip(result.edits, bases.values(), strict=True):
        direction = (basis[:, 0] + basis[:, 1]) / np.sqrt(2)
        assert edit.rank == 1
        assert direction @ edit.right[:, 0] > 0.999
        np.testing.assert_allclose(edited(direction[None], [edit]), 2 * direction[None], atol=0.05)


def test_v2_drops_similar_pairs_at_each_layer_on_its_own() -> None:
    planted, bases = _planted()
    first = SITES[0]
    good, bad = planted.rows[first]
    direction = np.eye(WIDTH)[0] + bases[first][:, 0]
    bad = bad.copy()
    bad[:30] = good[:30] - 0.2 * direction
    planted.rows[first] = (good, bad)
    result = ALIGNEZ_V2.fit(planted, LLAMA, LAYERS, MethodSettings())
    assert [report.as_json()["kept"] for report in result.sites] == [20, 50]
    remaining = good[30:] - bad[30:]
    top = np.linalg.svd(remaining)[2][0]
    assert _share_along(top, result.edits[0].right[:, 0]) > 1 - 1e-9


def test_v2_keeps_pairs_up_to_a_cosine_of_four_fifths() -> None:
    cosines = np.array([0.79, 0.81, -0.9, 1.0])
    good = np.tile([2.0, 0.0], (4, 1))
    bad = 3.0 * np.stack([cosines, np.sqrt(1 - cosines**2)], axis=1)
    kept, total = kept_differences(AnswerRows(good, bad))
    assert total == 4
    np.testing.assert_array_equal(kept, (good - bad)[[0, 2]])


def test_v2_skips_a_layer_with_too_few_pairs_and_says_so() -> None:
    planted, _ = _planted()
    good, _ = planted.rows[SITES[0]]
    planted.rows[SITES[0]] = (good, good * 1.1)
    result = ALIGNEZ_V2.fit(planted, LLAMA, LAYERS, MethodSettings())
    assert [edit.site for edit in result.edits] == [SITES[1]]
    assert "0 of 50 pairs" in str(result.sites[0].as_json()["skipped"])
    planted.rows[SITES[1]] = planted.rows[SITES[0]]
    with pytest.raises(BadInputError, match=r"mlp_write\.0: 0 of 50 pairs"):
        ALIGNEZ_V2.fit(planted, LLAMA, LAYERS, MethodSettings())


def test_v2_takes_as_many_directions_as_hold_the_energy_or_as_asked() -> None:
    rng = np.random.default_rng(0)
    basis = orthonormal(rng, WIDTH, 3)
    differences = orthonormal(rng, 40, 3) * np.sqrt([50.0, 45.0, 5.0]) @ basis.T
    planted = PlantedRows(dict.fromkeys(SITES, (differences / 2, -differences / 2)))
    default = ALIGNEZ_V2.fit(planted, LLAMA, LAYERS, MethodSettings())
    assert [edit.rank for edit in default.edits] == [2, 2]
    assert ALIGNEZ_V2.fit(planted, LLAMA, LAYERS, MethodSettings(rank=3)).edits[0].rank == 3
    with pytest.raises(BadInputError, match="rank 4"):
        ALIGNEZ_V2.fit(planted, LLAMA, LAYERS, MethodSettings(rank=4))


def test_mean_difference_projects_out_the_direction_between_the_means() -> None:
    planted, bases = _planted()
    result = MEAN_DIFFERENCE.fit(planted, LLAMA, LAYERS, MethodSettings())
    for edit, (site, basis) in zip(result.edits, bases.items(), strict=True):
        good, bad = planted.rows[site]
        moved_good, moved_bad = edited(good, [edit]), edited(bad, [edit])
        np.testing.assert_allclose(moved_good.mean(axis=0), moved_bad.mean(axis=0), atol=1e-12)
        assert _share_along((basis[:, 0] + basis[:, 1]) / np.sqrt(2), edit.right[:, 0]) > 0.999
    half = MEAN_DIFFERENCE.fit(planted, LLAMA, LAYERS, MethodSettings(strength=0.5)).edits[0]
    good = planted.rows[SITES[0]][0]
    np.testing.assert_allclose(edited(good, [half]), (good + edited(good, [result.edits[0]])) / 2, atol=1e-12)


def test_shift_moves_the_bad_mean_onto_the_good_one() -> None:
    planted, _ = _planted()
    result = SHIFT.fit(planted, LLAMA, LAYERS, MethodSettings())
    for edit in result.edits:
        good, bad = planted.rows[edit.site]
        np.testing.assert_allclose(edited(bad, [edit]).mean(axis=0), good.mean(axis=0), atol=1e-12)
    assert SHIFT.fit(planted, LLAMA, LAYERS, MethodSettings(strength=-2.0)).edits[0].strength == -2.0


@pytest.mark.parametrize("method", [MEAN_DIFFERENCE, SHIFT], ids=lambda method: method.name)
def test_equal_means_and_impossible_ranks_are_refused(method: Method) -> None:
    planted, _ = _planted()
    with pytest.raises(BadInputError, match="rank 2"):
        method.fit(planted, LLAMA, LAYERS, MethodSettings(rank=2))
    good, _ = planted.rows[SITES[1]]
    planted.rows[SITES[1]] = (good, good[::-1])
    with pytest.raises(BadInputError, match=r"mlp_write\.2: good and bad answers have the same mean"):
        method.fit(planted, LLAMA, LAYERS, MethodSettings())


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize(("value", "message"), [(0.0, "zero"), (np.nan, "not finite"), (np.inf, "not finite")])
def test_dead_or_broken_activations_are_refused_by_layer(method: Method, value: float, message: str) -> None:
    planted, _ = _planted()
    good, bad = planted.rows[SITES[1]]
    planted.rows[SITES[1]] = (good, np.full_like(bad, value))
    with pytest.raises(BadInputError, match=rf"mlp_write\.2: activations of bad answers .*{message}"):
        method.fit(planted, LLAMA, LAYERS, MethodSettings())
