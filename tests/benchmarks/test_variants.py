"""The benchmark of variants: every line runs, the changed moments are those of changed rows, projections remove."""

import json

import numpy as np
import pytest

from alignez_bake.capture.statistics import Moments
from alignez_bake.methods.ridge import fit_ridge
from alignez_bake.site import Site
from benchmarks import variants
from benchmarks.cells import Cell, Measured
from benchmarks.variants_neutral import with_rows, without_directions
from benchmarks.variants_projections import removal
from benchmarks.variants_tables import variants_tables
from benchmarks.variants_tried import VARIANTS, YARDSTICK

SITE = Site("mlp_write", 0)


@pytest.mark.usefixtures("_judged_by_length")
def test_it_measures_variants_and_goes_on_where_it_stopped(world, tmp_path, capsys, monkeypatch):
    from alignez_bake import pipeline
    from benchmarks import measuring

    monkeypatch.setattr(measuring, "ANSWER_TOKENS", 6)
    monkeypatch.setattr(pipeline, "ANSWER_TOKENS", 16)
    monkeypatch.setattr(pipeline, "CHARACTERISTIC_TOKENS", 4)
    names = [
        YARDSTICK,
        "contrastive_decoding, self-filtered pairs",
        "contrastive_decoding, second round on top",
        "contrastive_decoding, readers in front",
        "contrastive_decoding, neutral rows everywhere, ρ = 1",
        "ridge, keys projected",
        "ridge, neutral rows, ρ = 1",
        "ridge at q, k, v, γ = 2",
        "whitened projection, s = 1",
    ]
    arguments = [str(world), "--out", str(tmp_path), "--seeds", "1", "--samples", "1", "--variants", *names]
    variants.main(arguments)
    printed = capsys.readouterr().out
    runs = {run["subject"]: run for run in json.loads((tmp_path / "variants.json").read_text())["runs"]}
    assert runs["base"]["kl"] == 0
    # A random model judges at random: what it filters out leaves too few pairs here, and the table says so.
    assert "too few pairs" in runs["contrastive_decoding, self-filtered pairs"]["refused"]
    assert "No edit by contrastive_decoding, self-filtered pairs in museum llama: too few pairs" in printed
    for name in set(names) - {"contrastive_decoding, self-filtered pairs"}:
        assert runs[name]["kl"] > 0, name
        assert runs[name]["pairs"] >= 8
        assert len(runs[name]["good"]) == 6
        assert f"| {name} |" in printed
    drifts = [runs[name]["kl"] for name in names if runs[name]["refused"] is None]
    assert len(set(drifts)) == len(drifts)
    assert "python -m benchmarks.variants" in printed

    monkeypatch.setattr(variants, "measured", None)  # nothing is measured again
    variants.main(arguments)
    assert capsys.readouterr().out == printed


def test_every_variant_has_a_cell_of_its_own():
    names = {Cell("w", name, None, 0, "all", 1).file_name for name in VARIANTS}
    assert len(names) == len(VARIANTS)


def rows(seed, n, width):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, width)) @ rng.normal(size=(width, width))


def test_projected_keys_are_the_moments_of_projected_rows_and_the_edit_reads_nothing_there():
    z, d, neutral = rows(0, 50, 6), rows(1, 50, 4), rows(2, 30, 6)
    _, _, vt = np.linalg.svd(neutral)
    top = vt[:2].T
    kept = z - (z @ top) @ top.T
    found = without_directions(Moments.of(z, d), neutral, directions=2)
    expected = Moments.of(kept, d)
    for name in ("ztz", "ztd", "z_sum", "d_square", "count"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=1e-9)
    fit = fit_ridge(SITE, found, penalty=0.01, rank=2)
    assert np.abs(fit.right.T @ top).max() < 1e-9 * np.abs(fit.right).max()


def test_neutral_rows_are_the_moments_of_rows_with_target_zero():
    z, d, neutral = rows(0, 50, 6), rows(1, 50, 4), rows(2, 30, 6)
    scaled = np.sqrt(2.0 * 50 / 30) * neutral
    found = with_rows(Moments.of(z, d), neutral, worth=2.0)
    expected = Moments.of(np.concatenate([z, scaled]), np.concatenate([d, np.zeros((30, 4))]))
    for name in ("ztz", "ztd", "d_square"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=1e-9)
    assert found.count == 150
    alone = fit_ridge(SITE, Moments.of(z, d), penalty=0.01, rank=4)
    with_neutral = fit_ridge(SITE, found, penalty=0.01, rank=4)
    moved = [np.linalg.norm(neutral @ fit.right) for fit in (alone, with_neutral)]
    assert moved[1] < 0.8 * moved[0]


@pytest.mark.parametrize("kind", ["orthogonal", "whitened", "centred"])
def test_a_projection_takes_the_difference_away_and_does_nothing_more_the_second_time(kind):
    good, bad, neutral = rows(0, 60, 5) + 1.0, rows(1, 60, 5), rows(2, 40, 5)
    edit = removal(SITE, good, bad, neutral, kind)

    def edited(values):
        bias = 0.0 if edit.bias is None else edit.bias
        return values + (values @ edit.right) @ edit.left.T + bias

    difference = good.mean(axis=0) - bad.mean(axis=0)
    after = edited(good).mean(axis=0) - edited(bad).mean(axis=0)
    assert np.abs(after).max() < 1e-9 * np.abs(difference).max()
    np.testing.assert_allclose(edited(edited(neutral)), edited(neutral), atol=1e-9)
    everything = np.concatenate([good, bad, neutral])
    moved = edited(everything) - everything
    if kind == "centred":
        assert np.abs(moved.mean(axis=0)).max() < 1e-9


def test_the_whitened_projection_moves_least_in_its_own_measure():
    good, bad, neutral = rows(0, 60, 5) + 1.0, rows(1, 60, 5), rows(2, 40, 5)
    everything = np.concatenate([good, bad, neutral])
    inverse = np.linalg.inv(np.cov(everything, rowvar=False))
    costs = {}
    for kind in ("orthogonal", "whitened"):
        edit = removal(SITE, good, bad, neutral, kind)
        moved = (everything @ edit.right) @ edit.left.T
        costs[kind] = np.einsum("ni,ij,nj->", moved, inverse, moved)
    assert costs["whitened"] < costs["orthogonal"]


def test_tables_of_planted_figures():
    def cell(subject, seed):
        return Cell("w", subject, None, seed, "all", 1)

    def figures(good):
        return Measured(good=(1,) * good + (0,) * (100 - good), loss=0.5, kl=0.01, seconds={"fit": 3.0}, pairs=9)

    counts = {"base": (50, 40), "tuned": (90, 90), YARDSTICK: (80, 80), "ridge": (70, 85)}
    found = {cell(name, seed): figures(good) for name, both in counts.items() for seed, good in enumerate(both)}
    found[cell("readers, front to back", 0)] = Measured(refused="no map")
    names = [YARDSTICK, "ridge", "readers, front to back", "ridge, keys projected"]
    text = "\n".join(variants_tables(found, ["w"], names))
    assert f"| methods | {YARDSTICK} | 77.5 (75.0 to 80.0) | 0.0100 | - | - |" in text
    assert "| methods | ridge | 70.0 (50.0 to 90.0) | 0.0100 | -7.5 (-25.0 to 10.0) | 1 of 2 |" in text
    assert "| ridge | 70.0, 85.0 | 70.0 (50.0 to 90.0) | 0.0100 (0.0100 to 0.0100) |" in text
    assert "| readers | readers, front to back | - | - | - | - |" in text
    assert "No edit by readers, front to back in w: no map." in text
    assert "Not measured: ridge, keys projected." in text
    assert "| neutral texts | ridge, keys projected" not in text
