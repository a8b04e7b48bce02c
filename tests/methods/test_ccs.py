"""Method `ccs`, and the layers that CCS losses choose, on planted activations."""

from __future__ import annotations

import json

import numpy as np
import pytest

from alignez_bake.architectures.architecture import architecture_for
from alignez_bake.errors import BadInputError
from alignez_bake.methods.alignez_v1 import ALIGNEZ_V1
from alignez_bake.methods.ccs import CCS
from alignez_bake.methods.protocol import Method, MethodSettings
from alignez_bake.site import Site
from tests.methods.planted import WIDTH, PlantedRows, edited, orthonormal

LLAMA = architecture_for({"model_type": "llama"})
LAYERS = (0, 1, 2, 3)
SITES = tuple(Site("mlp_write", layer) for layer in LAYERS)
PAIRS = 60
FIGURES = {"ccs_loss", "accuracy", "consistency", "confidence"}


class Planted:
    """At each site a direction that tells the sides apart, and a larger one that all answers share.

    Attributes:
        bases: by site [d, 2], what separates, and what is shared.
        capture: of the rows.
    """

    def __init__(self, noise: tuple[float, ...] = (0.9, 0.1, 0.8, 0.15), seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.bases = {site: orthonormal(rng, WIDTH, 2) for site in SITES}
        rows = {}
        for (site, basis), size in zip(self.bases.items(), noise, strict=True):
            shared = 4.0 * basis[:, 1] + 0.3 * rng.normal(size=(PAIRS, 1)) * basis[:, 1]
            rows[site] = tuple(
                shared + sign * basis[:, 0] + size * rng.normal(size=(PAIRS, WIDTH)) for sign in (1.0, -1.0)
            )
        self.capture = PlantedRows(rows)


def chosen(method: Method, planted: Planted, **settings: object) -> set[int | None]:
    result = method.fit(planted.capture, LLAMA, LAYERS, MethodSettings(**settings))
    return {edit.site.layer for edit in result.edits}


def test_what_tells_the_sides_apart_goes_and_what_good_answers_share_grows() -> None:
    planted = Planted()
    result = CCS.fit(planted.capture, LLAMA, (1, 3), MethodSettings(strength=0.5, objective="harmless"))
    assert [edit.site.layer for edit in result.edits] == [1, 1, 3, 3]
    assert {edit.objective for edit in result.edits} == {"harmless"}
    assert all(edit.gate == "identity" and edit.reads == "output" and edit.bias is None for edit in result.edits)
    for report in result.sites:
        good, bad = planted.capture.rows[report.site]
        basis = planted.bases[report.site]
        chain = [edit for edit in result.edits if edit.site == report.site]
        assert chain[0].right[:, 0] @ basis[:, 0] < -0.99  # towards the bad side
        before, after = good - bad, edited(good, chain) - edited(bad, chain)
        assert np.abs(after.mean(axis=0) @ basis[:, 0]) < 0.05 * (before.mean(axis=0) @ basis[:, 0])
        np.testing.assert_allclose(edited(good, chain).mean(axis=0) @ basis[:, 1], 1.5 * 4.0, rtol=0.1)
        figures = report.as_json()
        assert set(figures) == {"site", "good_energies", *FIGURES}
        assert figures["accuracy"] == 1.0
        assert 0 < figures["ccs_loss"] < 0.1
    json.dumps([report.as_json() for report in result.sites], allow_nan=False)


@pytest.mark.parametrize("method", [CCS, ALIGNEZ_V1], ids=lambda method: method.name)
def test_top_layers_are_those_with_the_smallest_ccs_loss(method: Method) -> None:
    planted = Planted()
    assert chosen(method, planted) == set(LAYERS)
    assert chosen(method, planted, top_layers=1) == {1}
    assert chosen(method, planted, top_layers=3) == {1, 2, 3}
    assert chosen(method, planted, top_layers="auto") == {1, 3}
    result = method.fit(planted.capture, LLAMA, LAYERS, MethodSettings(top_layers="auto"))
    losses = [report.as_json()["ccs_loss"] for report in result.sites]
    assert np.argsort(losses).tolist() == [1, 3, 2, 0]
    for report in result.sites:
        kept = report.site.layer in {1, 3}
        assert report.skipped == (None if kept else "its CCS loss lies above the largest jump of the running mean")
        assert set(report.as_json()) >= FIGURES
    assert "the ones with the smallest CCS loss over all pairs" in result.notes[0]


def test_v1_runs_no_probe_unless_layers_are_to_be_chosen() -> None:
    result = ALIGNEZ_V1.fit(Planted().capture, LLAMA, LAYERS, MethodSettings())
    assert all(not FIGURES & set(report.as_json()) for report in result.sites)
    assert result.notes[0].endswith("the layers are those that were given")
    with_choice = ALIGNEZ_V1.fit(Planted().capture, LLAMA, LAYERS, MethodSettings(top_layers=4))
    for edit, other in zip(result.edits, with_choice.edits, strict=True):
        np.testing.assert_array_equal(edit.left, other.left)


def test_a_layer_whose_probe_is_of_no_use_is_left_out_and_the_report_says_so() -> None:
    planted = Planted()
    good, bad = planted.capture.rows[SITES[1]]
    flipped = np.arange(PAIRS)[:, None] % 2 == 0
    planted.capture.rows[SITES[1]] = (np.where(flipped, good, bad), np.where(flipped, bad, good))
    result = CCS.fit(planted.capture, LLAMA, LAYERS, MethodSettings())
    assert {edit.site.layer for edit in result.edits} == {0, 2, 3}
    assert result.sites[1].skipped == "its CCS probe agrees with 30 of 60 pairs, which is within chance"
    assert chosen(CCS, planted, top_layers=1) == {3}
    with pytest.raises(
        BadInputError, match=r"'ccs' found no layer to edit: mlp_write\.1: its CCS probe agrees with 30"
    ):
        CCS.fit(planted.capture, LLAMA, (1,), MethodSettings())
    with pytest.raises(BadInputError, match=r"'alignez_v1' found no layer to edit: mlp_write\.1"):
        ALIGNEZ_V1.fit(planted.capture, LLAMA, (1,), MethodSettings(top_layers="auto"))


def test_bad_input_is_refused_by_name() -> None:
    planted = Planted()
    with pytest.raises(BadInputError, match="'ccs' has one normal a layer: rank 2 is not possible"):
        CCS.fit(planted.capture, LLAMA, LAYERS, MethodSettings(rank=2))
    planted.capture.rows[SITES[2]] = (np.ones((PAIRS, WIDTH)), np.ones((PAIRS, WIDTH)))
    with pytest.raises(BadInputError, match=r"mlp_write\.2: all activations are the same"):
        CCS.fit(planted.capture, LLAMA, LAYERS, MethodSettings())


def test_one_seed_gives_one_fit() -> None:
    fits = [CCS.fit(Planted().capture, LLAMA, LAYERS, MethodSettings(seed=seed)) for seed in (7, 7, 8)]
    normals = [fit.edits[0].right for fit in fits]
    np.testing.assert_array_equal(normals[0], normals[1])
    assert (normals[0] != normals[2]).any()
