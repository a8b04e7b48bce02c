"""The page of a real result: written by a bake, covered by its manifest, made again, and of records that lie."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from alignez_bake.capture.spec import Pass
from alignez_bake.capture.tokenise import tokenise_pairs
from alignez_bake.commands.activation_pictures import PICTURED_PAIRS, pictured_layers
from alignez_bake.commands.bake import bake
from alignez_bake.commands.bake_onnx import bake_onnx
from alignez_bake.commands.inspect import inspect
from alignez_bake.commands.push import push
from alignez_bake.commands.verify import verify
from alignez_bake.edit_file import write_edits
from alignez_bake.errors import BadInputError
from alignez_bake.language_model.loading import load_language_model
from alignez_bake.model_folder import open_model_folder
from alignez_bake.preference_pairs.filters import match_pairs
from alignez_bake.preference_pairs.pair_file import read_pairs
from alignez_bake.prompts.objective import shipped_objectives
from alignez_bake.prompts.prompt_form import prompt_form
from alignez_bake.report.html import packages
from alignez_bake.report.html.of_result import page_of_result
from alignez_bake.report.html.packages import page_wanted
from alignez_bake.report.html.page_parts import PageParts, read_parts
from alignez_bake.tuning.frontier import FrontierPoint, TuningResult
from alignez_bake.tuning.uncertainty import ClusteredMean
from tests.baking import command, contents, nothing_written, plan_for
from tests.onnx_patch.graphs import torchscript_graph
from tests.report.html_reports import HOSTILE


@pytest.fixture
def aligned(reported, tmp_path):
    """A copy to change, beside a copy of its base."""
    for name in ("base", "aligned"):
        shutil.copytree(reported / name, tmp_path / name)
    return tmp_path / "aligned"


@pytest.fixture(scope="module")
def base(tmp_path_factory, save_tiny):
    """A tiny base without a result. Never change it."""
    return save_tiny("llama", tmp_path_factory.mktemp("plain") / "base", overrides={"max_position_embeddings": 64})


def page_in(result):
    return (result / "alignez" / "report.html").read_text(encoding="utf-8")


def sections(page):
    return [
        name for name in ("samples", "frontier", "layers", "activations", "done") if f'<section id="{name}"' in page
    ]


def test_the_whole_way_shows_what_it_did(reported):
    page = page_in(reported / "aligned")
    assert sections(page) == ["samples", "layers", "activations", "done"]
    assert "<h1>aligned</h1>" in page
    assert page.count('<article class="sample">') == 8
    assert page.count("<svg") >= 6
    assert "alignez-bake bake --model base --edits alignez/edits.safetensors --out OUT" in page
    assert "Pairs: the model has 96 positions" in page
    assert "Not measured or not recorded, and so not shown: the rate of good answers; the KL from the base" in page


def test_its_points_are_the_principal_components_of_plain_transformers_activations(reported):
    """Pairs from the file, hidden states of transformers, numpy's decomposition: nothing of the recording is used."""
    parts = read_parts(reported / "aligned")
    assert [projection.site for projection in parts.projections] == ["residual.0", "residual.1"]
    records = read_pairs(reported / "aligned" / "alignez" / "pairs.jsonl", default_objective="helpful").records
    pairs, _ = match_pairs(records, "helpful")
    lm = load_language_model(open_model_folder(reported / "base"), device="cpu", trust_remote_code=False)
    tokenised = tokenise_pairs(pairs, shipped_objectives()["helpful"], prompt_form(lm.tokenizer, "{query}"))
    for name, cloud_of in (("base", "before"), ("aligned", "after")):
        model = AutoModelForCausalLM.from_pretrained(reported / name, dtype=torch.float32).eval()
        with torch.no_grad():
            rows = np.stack([
                model.model.layers[0](model.model.embed_tokens(ids), position_embeddings=model.model.rotary_emb(
                    model.model.embed_tokens(ids), torch.arange(ids.shape[1])[None]))[0, -1].double().numpy()
                for side in ("good", "bad")
                for pair in tokenised
                for ids in [torch.tensor([pair.sequence(Pass("plain", side))])]
            ])  # fmt: skip
        projection = parts.projections[0]
        cloud = getattr(projection, cloud_of)
        assert len(cloud.good) == len(cloud.bad) == len(pairs) <= PICTURED_PAIRS
        if name == "base":
            mean = rows.mean(axis=0)
            axes = np.linalg.svd(rows - mean, full_matrices=False)[2][:2]
        expected = (rows - mean) @ axes.T
        found = np.concatenate([cloud.good, cloud.bad])
        signs = np.sign(np.sum(expected * found, axis=0))
        np.testing.assert_allclose(found, expected * signs, atol=2e-3 * np.abs(expected).max())
    moved = np.abs(projection.after.good - projection.before.good).max()
    assert moved > 0.01 * np.abs(projection.before.good).max()


def test_layers_are_spread_to_the_last():
    assert [pictured_layers(count) for count in (1, 2, 6, 32)] == [[0], [0, 1], [1, 3, 5], [10, 21, 31]]


def test_the_manifest_covers_it_and_what_reads_results_takes_it(aligned):
    assert verify(aligned, level="manifest").verdict == "passed"
    assert {"alignez/report.html", "alignez/report.json"} <= {
        name for name, _ in push(aligned, "user/aligned", dry_run=True).upload.files
    }
    page = aligned / "alignez" / "report.html"
    page.write_text(page_in(aligned).replace("passed", "perfect"), encoding="utf-8")
    assert "'alignez/report.html'" in str(verify(aligned, level="manifest").to_json())
    assert verify(aligned, level="manifest").verdict == "failed"


def test_inspect_makes_the_same_page_again_elsewhere_and_from_another_name(aligned, tmp_path, capsys):
    moved = aligned.rename(tmp_path / "renamed")
    with nothing_written(moved):
        assert command("inspect", moved, "--html", tmp_path / "new" / "page.html") == 0
    assert "Written to" in capsys.readouterr().out
    assert (tmp_path / "new" / "page.html").read_text(encoding="utf-8") == page_in(moved)
    # A second time, over the first.
    assert inspect(moved, html=tmp_path / "new" / "page.html").to_json()["html"].endswith("page.html")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("aligned/alignez/report.html", "whose files are as its manifest says"),
        ("base", "is a folder: name a file"),
        ("base/config.json", "is no report of alignez-bake, so it is not replaced"),
    ],
)
def test_the_page_takes_no_place_of_another_file(aligned, place, message):
    with nothing_written(aligned.parent), pytest.raises(BadInputError, match=message):
        inspect(aligned, html=aligned.parent / place)


def test_a_file_of_edits_has_no_page(aligned, tmp_path):
    with pytest.raises(BadInputError, match="--html shows a result folder"):
        inspect(aligned / "alignez" / "edits.safetensors", html=tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_a_bake_that_only_streams_has_it_when_asked_and_the_same_bytes_each_time(base, tmp_path):
    plan = plan_for(base)
    silent = bake(base, plan, tmp_path / "silent")
    assert (silent.report, silent.notes) == (None, ())
    assert not list((tmp_path / "silent").rglob("report.*"))
    for number in "12":
        assert bake(base, plan, tmp_path / number / "out", report=True).to_json()["report"].endswith("report.html")
    first, second = (contents(tmp_path / number / "out") for number in "12")
    assert first == second
    assert sections(page_in(tmp_path / "1" / "out")) == ["layers", "done"]
    # A result without any has one too, under its own name.
    assert "<h1>silent</h1>" in page_of_result(tmp_path / "silent")


def test_it_can_be_left_out_where_it_is_the_default(base, tmp_path):
    shown = PageParts("out")
    assert bake(base, plan_for(base), tmp_path / "with", shown=shown).report is not None
    assert bake(base, plan_for(base), tmp_path / "without", shown=shown, report=False).report is None
    assert not list((tmp_path / "without").rglob("report.*"))


def test_without_matplotlib_a_default_says_so_and_a_wish_is_refused(monkeypatch, base, tmp_path):
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name == "matplotlib" else object())
    note = "no report.html: matplotlib not installed (pip install matplotlib)"
    assert page_wanted(asked=None, by_default=True) == (False, (note,))
    assert page_wanted(asked=None, by_default=False) == page_wanted(asked=False, by_default=True) == (False, ())
    plan = plan_for(base)
    with nothing_written(tmp_path), pytest.raises(BadInputError, match="the report cannot be made: matplotlib"):
        bake(base, plan, tmp_path / "out", report=True)
    with pytest.raises(BadInputError, match="the report cannot be made: matplotlib"):
        inspect(base, html=tmp_path / "page.html")
    shown = PageParts("out")
    assert bake(base, plan, tmp_path / "out", shown=shown).notes == (note,)


def test_a_patched_graph_has_one(base, tmp_path):
    (tmp_path / "graph").mkdir()
    torchscript_graph(base, tmp_path / "graph")
    plan = plan_for(base)
    result = bake_onnx(tmp_path / "graph", plan, tmp_path / "out", verify="tensors", report=True)
    page = page_in(result.path)
    assert "alignez-bake bake --base-onnx graph --edits alignez/edits.safetensors --out OUT" in page
    assert sections(page) == ["layers", "done"]


def found_by_search(**changes):
    points = (
        FrontierPoint("base", "", {}, ClusteredMean(0.5, 0.46, 0.54, 0.02), 0.0, 100, None),
        FrontierPoint("ridge 2", "ridge", {}, ClusteredMean(0.8, 0.76, 0.84, 0.02), 0.02, 100, None),
        FrontierPoint(
            "ridge 9", "ridge", {}, ClusteredMean(0.6, 0.56, 0.64, 0.02), 0.5, 50, "its KL is beyond the budget"
        ),
    )
    gain = ClusteredMean(0.3, 0.2, 0.4, 0.03)
    return {**TuningResult(points, "ridge 2", "it is the best", gain, 0.1, 25, {"helpful": 1.0}).to_json(), **changes}


def test_a_search_that_the_edits_record_is_shown(base, tmp_path):
    plan = replace(plan_for(base), provenance={"method": "ridge", "tuning": found_by_search()})
    bake(base, plan, tmp_path / "out", report=True)
    page = page_in(tmp_path / "out")
    assert sections(page) == ["frontier", "layers", "done"]
    assert "within the budget of 0.1" in page
    assert "its KL is beyond the budget" in page
    assert ">tuning<" not in page  # no row among the settings
    # The same from a file, as `fit` leaves it.
    write_edits(plan, tmp_path / "edits.safetensors")
    bake(base, tmp_path / "edits.safetensors", tmp_path / "again" / "out", report=True)
    assert page_in(tmp_path / "again" / "out") == page


def test_a_search_that_cannot_be_read_ends_no_bake(base, tmp_path):
    damaged = found_by_search(points=[{"candidate": HOSTILE}])
    plan = replace(plan_for(base), provenance={"tuning": damaged})
    assert bake(base, plan, tmp_path / "out", report=True).verdict == "passed"
    page = page_in(tmp_path / "out")
    assert "The search that the edits record is not shown: the record of the search is no tuning result" in page
    assert "frontier" not in sections(page)


def test_figures_that_nobody_measured_end_no_bake_and_draw_what_can_be_drawn(base, tmp_path):
    """Provenance is free: edits of others may say anything there."""
    plan = plan_for(base)
    sites = [
        {"site": str(edit.site), "explained": value, "energies": [value, 1e308]}
        for edit, value in zip(plan.edits, (1e308, -1e308), strict=True)
    ]
    points = found_by_search()["points"]
    for point, value in zip(points, (1e308, -1e308, 1e-320), strict=True):
        point["kl"] = value
        point["rate"] = {"value": value, "standard_error": -value, "low": -1e308, "high": 1e308}
    plan = replace(
        plan,
        edits=tuple(replace(edit, objective="helpful") for edit in plan.edits),
        provenance={"sites": {"helpful": sites}, "tuning": found_by_search(points=points)},
    )
    bake(base, plan, tmp_path / "out", report=True)
    page = page_in(tmp_path / "out")
    assert sections(page) == ["frontier", "layers", "done"]
    assert "2 of 3 lack one of the two and are not drawn" in page
    assert "1e+308" in page


def replaced(value):
    """Every text of a JSON value by one that would do harm as markup, keys as they are."""
    if isinstance(value, dict):
        return {key: replaced(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [replaced(inner) for inner in value]
    return HOSTILE if isinstance(value, str) else value


def test_texts_of_a_result_that_somebody_else_wrote_stay_texts(aligned):
    for name in ("alignez.json", "certificate.json", "report.json"):
        path = aligned / "alignez" / name
        path.write_text(json.dumps(replaced(json.loads(path.read_text()))))
    page = page_of_result(aligned)
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "{{ 7 * 7 }}" in page
