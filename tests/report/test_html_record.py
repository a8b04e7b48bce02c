"""A report from what bakes record: certificates of every kind, edits, decisions, and records that are damaged."""

from __future__ import annotations

import numpy as np
import pytest

from alignez_bake.certificate.graph_figures import GraphCertificate, GraphComparison, GraphGreedy, GraphPlace
from alignez_bake.certificate.tensors import TensorsCertificate
from alignez_bake.commands.bake import bake
from alignez_bake.edit import Edit
from alignez_bake.edit_plan import EditPlan
from alignez_bake.errors import BadInputError
from alignez_bake.lowering.fold import Delivery
from alignez_bake.report.html.certificate_levels import certificate_levels, edited_tensors
from alignez_bake.report.html.from_record import report_data_from_record
from alignez_bake.report.html.page import report_page
from alignez_bake.report.html.plan_sites import singular_values, site_figures
from alignez_bake.report.html.report_data import CertificateFigure, RoutedEdit, Sample, TensorFigures
from alignez_bake.report.record import read_certificate, read_record, read_result_edits
from alignez_bake.site import Site
from tests.baking import plan_for

RNG = np.random.default_rng(0)
FORWARD = {
    "level": "forward",
    "verdict": "failed",
    "reasons": ["it differs"],
    "dtype": "float32",
    "prompts": {"count": 32},
    "comparisons": [
        {
            "batch_size": 8,
            "residual_error": 3.4e-07,
            "residual_bound": 1e-05,
            "logits_error": 3.7e-07,
            "logits_bound": 1e-05,
            "residual_moved": 0.45,
            "logits_moved": 0.46,
        }
    ],
    "greedy": {"tokens": 64, "equal_share": {"batch 8": 0.5}},
    "last_only_difference": 0.17,
    "worst_site": {"module": "model.layers.1.mlp.down_proj", "error": 2.2e-07, "tolerance": 1e-06},
    "routing": None,
}
GRAPH = GraphCertificate(
    "passed",
    (),
    "float32",
    GraphPlace("model.onnx", "CPUExecutionProvider", None),
    {"count": 32},
    (GraphComparison(4, "filled", 32, 0, 2e-5, 1e-4, 3e-7, None, 0.25),),
    (GraphGreedy(4, "the hooked base", 32, 31, 1, 0),),
    64,
)
TENSORS = TensorsCertificate("passed", (), (Delivery("w", 0.99994, 0.01, None),), untouched=7, added=3, dtype=None)


def figures(level):
    (found,) = certificate_levels({"levels": {level["level"]: level}})
    return [tuple(figure) for figure in map(_as_tuple, found.figures)]


def _as_tuple(figure: CertificateFigure) -> tuple[str, str, str, str]:
    return (figure.name, figure.value, figure.bound, figure.moved)


def test_a_model_beside_the_hooked_base():
    assert figures(FORWARD) == [
        ("dtype", "float32", "", ""),
        ("logits differ, edits at the last position alone", "1.7e-01", "", ""),
        ("residual error, batch 8", "3.4e-07", "at most 1.0e-05", "4.5e-01"),
        ("logits error, batch 8", "3.7e-07", "at most 1.0e-05", "4.6e-01"),
        ("worst site, model.layers.1.mlp.down_proj", "2.2e-07", "at most 1.0e-06", ""),
        ("64 greedy tokens equal, batch 8", "50% of prompts", "", ""),
    ]
    (level,) = certificate_levels({"levels": {"forward": FORWARD}})
    assert (level.verdict, level.reasons) == ("failed", ("it differs",))


def test_a_graph():
    assert figures(GRAPH.to_json()) == [
        ("dtype", "float32", "", ""),
        ("logits against the hooked base, batch 4, cache filled", "2.0e-05", "at most 1.0e-04", "2.5e-01"),
        ("logits against the baked model, batch 4, cache filled", "3.0e-07", "", "2.5e-01"),
        ("64 greedy tokens equal to the hooked base's, batch 4", "31 of 32 prompts", "", ""),
    ]


def test_tensors():
    assert figures(TENSORS.to_json()) == [
        ("edited tensors that are the formula, rounded once", "1", "", ""),
        ("other tensors that are the base's", "7", "", ""),
        ("inserted parameters that are the edits'", "3", "", ""),
        ("lowest delivered share", "0.9999", "at least 0.9", ""),
    ]
    assert edited_tensors({"levels": {"tensors": TENSORS.to_json()}}) == (TensorFigures("w", 0.99994, 0.01, None),)
    assert edited_tensors({"levels": {"forward": FORWARD}}) == ()


def test_a_patched_graph_beside_its_model():
    level = {
        "level": "forward",
        "verdict": "passed",
        "reasons": [],
        "logits_moved": 0.3,
        "required_logits_moved": 1e-3,
        "worst_site": "attn_write.1",
        "worst_site_error": 2e-7,
        "worst_site_tolerance": 1e-6,
        "model": GRAPH.to_json(),
    }
    found = figures(level)
    assert ("logits moved", "3.0e-01", "at least 1.0e-03", "") in found
    assert ("worst site error", "2.0e-07", "at most 1.0e-06", "") in found
    beside = "beside the model: logits against the hooked base, batch 4, cache filled"
    assert (beside, "2.0e-05", "at most 1.0e-04", "2.5e-01") in found
    assert "worst site tolerance" not in {name for name, *_ in found}


@pytest.mark.parametrize(
    ("certificate", "message"),
    [
        ({}, "'levels' must be an object of objects"),
        ({"levels": []}, "'levels' must be an object of objects"),
        ({"levels": {"tensors": 3}}, "'levels' must be an object of objects"),
        ({"levels": {"tensors": {}}}, "level 'tensors' has no verdict"),
        ({"levels": {"x": {"verdict": "passed", "reasons": "none"}}}, "no reasons"),
    ],
)
def test_a_damaged_certificate_is_refused(certificate, message):
    with pytest.raises(BadInputError, match=message):
        certificate_levels(certificate)


def edit(kind: str, layer: int, rank: int = 2, **more) -> Edit:
    return Edit(Site(kind, layer), left=RNG.normal(size=(9, rank)), right=RNG.normal(size=(9, rank)), **more)


def test_singular_values_are_those_of_the_whole_matrix():
    one = edit("attn_write", 1, 3, strength=-2.0)
    dense = 0.5 * -2.0 * one.left @ one.right.T
    np.testing.assert_allclose(singular_values(one, 0.5), np.linalg.svd(dense, compute_uv=False)[:3], rtol=1e-10)
    assert singular_values(Edit(Site("residual", 1), bias=np.ones(4))) == ()


def test_sites_have_their_edits_and_what_the_fit_found():
    one, two = edit("attn_write", 1, objective="a", strength=2.0), edit("mlp_write", 0, objective="a")
    gated = [edit("mlp_write", 3, 1, objective="b", gate="relu"), edit("mlp_write", 3, 2, objective="b", strength=3.0)]
    sites = {
        "a": [
            {
                "site": "attn_write.1",
                "tokens": 90,
                "explained": 0.5,
                "edit_norm": 99.0,
                "rank": 7,
                "energies": [2.0, 1],
            },
            {"site": "mlp_write.9", "skipped": "no agreement", "score": 0.1},
            {"site": "mlp_write.0"},
        ],
        "b": [],
    }
    plan = EditPlan((one, two, *gated), weights={"a": 0.5}, provenance={"sites": sites})
    first, second, third, left_out = site_figures(plan)
    assert (first.site, first.objective, first.strength, first.rank) == ("attn_write.1", "a", 1.0, 2)
    assert (first.explained, first.others, first.spectra["energies"]) == (0.5, {"tokens": 90.0}, (2.0, 1.0))
    # The edits say more than what a fit once recorded: dials may have been turned since.
    np.testing.assert_allclose(first.edit_norm, 0.5 * 2.0 * np.linalg.norm(one.left @ one.right.T))
    assert (second.site, second.explained) == ("mlp_write.0", None)
    assert (third.strength, third.rank, third.edit_norm) == (None, 3, None)
    assert list(third.spectra) == ["singular values, edit 1", "singular values, edit 2"]
    assert (left_out.site, left_out.skipped, left_out.others) == ("mlp_write.9", "no agreement", {"score": 0.1})


@pytest.mark.parametrize("sites", [None, 3, [], {"a": 3}, {"a": [3]}, {"a": [{"site": 3}]}, {"a": [{"x": 1}]}])
def test_provenance_of_another_shape_is_left_out(sites):
    plan = EditPlan((edit("attn_write", 1, objective="a"),), provenance={"sites": sites})
    (found,) = site_figures(plan)
    assert (found.site, found.others) == ("attn_write.1", {})


@pytest.fixture(scope="module")
def result(tmp_path_factory, save_tiny):
    folder = tmp_path_factory.mktemp("reported")
    base = save_tiny("llama", folder / "base")
    bake(base, plan_for(base), folder / "out")
    return folder / "out"


def test_a_bakes_own_record(result):
    plan = read_result_edits(result)
    data = report_data_from_record(
        read_record(result),
        read_certificate(result),
        title="out",
        plan=plan,
        samples=[("q", "b", "a")],
        commands=["alignez-bake bake"],
    )
    assert (data.title, data.base, data.artefact, data.verdict) == ("out", "base", "checkpoint", "passed")
    assert data.tool.startswith("alignez-bake ")
    assert [level.level for level in data.levels] == ["tensors"]
    assert [route.site for route in data.routes] == [str(edit.site) for edit in plan.edits]
    assert {site.site for site in data.sites} == {str(site) for site in plan.sites}
    assert len(data.tensors) == len({(route.kind, route.layer) for route in data.routes})
    assert data.samples == (Sample("q", "b", "a"),)
    settings = dict(data.settings)
    assert settings["base: tensors sha256"] == read_record(result)["base"]["tensors_sha256"]
    assert settings["dtype"] == "the base's"
    assert "numpy " in settings["versions"]
    # Edits of the user's own were not written by the model.
    assert not [note for note in data.notes if "its own preferences" in note]
    page = report_page(data)
    assert "the rate of good answers; the KL from the base; a search over strengths" in page


def test_notes_name_what_else_was_done():
    record = {
        "tool": "alignez-bake 0.1.0",
        "artefact": "checkpoint",
        "base": {"repo": "user/base", "commit": "a" * 40},
        "options": {"weight_bits": 4},
        "weights": {"helpful": 0.5},
        "provenance": {
            "method": "ridge",
            "pairs": {},
            "notes": ["pooled"],
            "settings": {"strength": 2.0, "rank": None},
        },
        "decisions": [{"edit": 0, "site": "attn_write.1", "route": "fold", "reason": "linear", "rank": 4}],
        "files_left_out": [{"name": "x.bin", "reason": "a pickle"}],
    }
    refit = {"kind": "linearised", "reasons": ["lost"], "kl_original_to_refitted": 0.03, "kl_original_to_base": 0.5}
    data = report_data_from_record(record, {"verdict": None, "levels": {}, "refit": refit}, title="t")
    assert data.base == f"user/base@{'a' * 40}"
    assert data.routes == (RoutedEdit("attn_write.1", "fold", "linear", rank=4),)
    assert data.notes[0].startswith("The base wrote and judged its own preferences")
    assert data.notes[1:] == (
        "pooled",
        (
            "Edits were changed to fold (linearised): KL from the original edits 0.03 nats a token, of the original "
            "edits from the base 0.5."
        ),
        "lost",
        "Files of the base that are not in the result: x.bin (a pickle).",
    )
    settings = dict(data.settings)
    assert (settings["strength (fit)"], settings["weight of helpful"], settings["weight bits"]) == ("2.0", "0.5", "4")
    assert "rank (fit)" not in settings


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"decisions": {}}, "'decisions' must be a JSON list"),
        ({"decisions": [{"site": "attn_write.1"}]}, "a decision lacks site, route or reason"),
        ({"decisions": ["fold"]}, "a decision lacks"),
        ({"provenance": []}, "'provenance' must be a JSON dict"),
        ({"tool": 3}, "'tool' must be a JSON str"),
        ({"weights": 3}, "'weights' must be a JSON dict"),
    ],
)
def test_a_damaged_record_is_refused(record, message):
    with pytest.raises(BadInputError, match=message):
        report_data_from_record(record, None, title="t")


def test_a_verdict_that_is_no_text_is_refused():
    with pytest.raises(BadInputError, match="verdict 3 is no text"):
        report_data_from_record({}, {"verdict": 3, "levels": {}}, title="t")
