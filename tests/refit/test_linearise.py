"""Linearised edits against least squares on stored activations, and against what they must be."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from alignez_bake.architectures.architecture import architecture_for
from alignez_bake.edit import Edit
from alignez_bake.edit_plan import EditPlan
from alignez_bake.errors import BadInputError
from alignez_bake.lowering.hooks import edited_by_hooks
from alignez_bake.refit import sums
from alignez_bake.refit.linearise import linearise
from alignez_bake.site import Site
from tests.capture.test_run import _CountingProgress
from tests.refit.recorded import effect, parts, share, stored_rows

MODEL_TYPES = ("llama", "gpt2", "opt", "gemma2", "gpt_neox", "qwen3")
CASES = [("attn_write", "output"), ("attn_write", "input"), ("mlp_write", "output"), ("mlp_write", "input"),
         ("mlp_gate", "output"), ("residual", "output"), ("embed", "output")]  # fmt: skip


def run(lm, plan, sequences, *, constant=True, batch_size=8, **settings):
    return linearise(lm, plan, sequences, batch_size=batch_size, allow_constant=lambda _site: constant, **settings)


def logits(lm, plan, sequences):
    with torch.no_grad(), edited_by_hooks(lm.model, lm.architecture, plan):
        return torch.cat([lm.model(input_ids=torch.tensor([ids])).logits[0] for ids in sequences])


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize(
    ("model_type", "kind", "reads"),
    [
        (model_type, kind, reads)
        for model_type in MODEL_TYPES
        for kind, reads in CASES
        if kind not in architecture_for({"model_type": model_type}).absent_sites
    ],
)
def test_the_fit_is_that_of_lstsq_on_stored_activations(
    tiny_lm64, edit_at, sequences, model_type, kind, reads, constant
):
    lm = tiny_lm64(model_type)
    gate = "tanh" if reads == "input" else "relu"
    edit = replace(edit_at(lm, Site(kind, None if kind == "embed" else 0), reads=reads, gate=gate), strength=-1.5)
    plan = EditPlan((edit,))
    result = run(lm, plan, sequences, constant=constant)
    (new,), (report,) = result.plan.edits, result.reports
    fitting, held_out = (stored_rows(lm, plan, 0, part)[0] for part in parts(sequences))
    padded = [np.column_stack([rows, np.ones(len(rows))]) if constant else rows for rows in (fitting, held_out)]
    best = np.linalg.lstsq(padded[0], effect(edit, fitting), rcond=None)[0]
    for rows, design, figure in zip((fitting, held_out), padded, (report.fitted, report.held_out), strict=True):
        expected = design @ best
        assert np.linalg.norm(effect(new, rows) - expected) <= 1e-8 * np.linalg.norm(expected)
        truth = effect(edit, rows)
        assert figure.uncentred == pytest.approx(share(truth, expected), abs=1e-8)
        centred = 1 - np.square(truth - expected).sum() / np.square(truth - truth.mean(axis=0)).sum()
        assert figure.centred == pytest.approx(centred, abs=1e-8)
        assert figure.rms == pytest.approx(np.sqrt(np.square(truth).sum(axis=1).mean()), rel=1e-10)
        assert figure.tokens == len(rows)
    assert 0.0 < report.explained_variance_fitted < 0.9999
    assert report.explained_variance != report.explained_variance_fitted
    assert (new.gate, new.reads, new.site, new.strength) == ("identity", reads, edit.site, -1.5)
    if constant:
        assert np.array_equal(new.left, edit.left)
        assert np.array_equal(new.bias, edit.bias)
    else:
        assert not new.has_constant
        assert new.rank == report.rank == edit.rank + 1


def test_the_left_factor_of_the_best_map_of_any_rank_is_that_of_the_edit(tiny_lm64, edit_at, sequences):
    """Without a bias of its own, also where no constant is allowed, the rank stays."""
    lm = tiny_lm64("llama")
    edit = edit_at(lm, Site("mlp_write", 1), bias=False)
    for constant in (True, False):
        (new,) = run(lm, EditPlan((edit,)), sequences, constant=constant).plan.edits
        assert np.array_equal(new.left, edit.left)
        assert new.bias is None
        assert (new.offset is not None) == constant


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_an_edit_that_is_linear_on_the_data_is_recovered(tiny_lm64, edit_at, sequences, model_type):
    """A relu that is always open; later edits see the same stream, so the whole model gives the same logits."""
    lm = tiny_lm64(model_type)
    plan = EditPlan(
        (
            edit_at(lm, Site("mlp_write", 0), offset=100.0, seed=1, objective="a"),
            edit_at(lm, Site("attn_write", 1), reads="input", offset=100.0, seed=2, objective="b"),
        ),
        weights={"a": 0.01, "b": 0.02},
    )
    result = run(lm, plan, sequences)
    for report in result.reports:
        for figures in (report.fitted, report.held_out):
            assert figures.uncentred == pytest.approx(1.0, abs=1e-10)
            assert figures.centred == pytest.approx(1.0, abs=1e-10)
    before, after = (logits(lm, which, sequences[:8]) for which in (plan, result.plan))
    assert relative(after, before) <= 1e-6  # fp32 norms
    assert relative(logits(lm, EditPlan(()), sequences[:8]), before) > 1e-4
    assert all(edit.gate == "identity" for edit in result.plan.edits)
    assert result.plan.weights == plan.weights


def test_an_edit_whose_gate_never_opens_gives_zero(tiny_lm64, edit_at, sequences):
    lm = tiny_lm64("llama")
    plan = EditPlan((edit_at(lm, Site("mlp_write", 0), offset=-1000.0, bias=False),))
    result = run(lm, plan, sequences)
    (new,), (report,) = result.plan.edits, result.reports
    assert not new.right.any()
    assert not new.offset.any()
    assert report.explained_variance is None
    assert report.explained_variance_fitted is None
    assert report.held_out.rms == report.held_out.residual_rms == 0.0
    assert torch.equal(logits(lm, result.plan, sequences[:2]), logits(lm, EditPlan(()), sequences[:2]))


def test_a_constant_that_alone_is_left_is_explained_by_the_bias_only_where_there_may_be_one(
    tiny_lm64, edit_at, sequences
):
    lm = tiny_lm64("llama")
    plan = EditPlan((edit_at(lm, Site("mlp_write", 0), offset=-1000.0),))
    (home,) = run(lm, plan, sequences).reports
    assert home.explained_variance == 1.0
    assert home.held_out.centred is None
    assert home.constant
    (homeless,) = run(lm, plan, sequences, constant=False).reports
    assert 0.0 < homeless.explained_variance < 0.999
    assert not homeless.constant


def test_a_constant_makes_the_fit_better_by_a_clear_margin(tiny_lm64, edit_at, sequences):
    lm = tiny_lm64("llama")
    plan = EditPlan((edit_at(lm, Site("mlp_write", 1), offset=1.0),))
    with_constant, without = (run(lm, plan, sequences, constant=constant).reports[0] for constant in (True, False))
    assert with_constant.explained_variance_fitted > without.explained_variance_fitted + 0.01


def test_each_site_is_asked_whether_it_may_have_a_constant(tiny_lm64, edit_at, sequences):
    lm = tiny_lm64("llama")
    plan = EditPlan((edit_at(lm, Site("mlp_write", 0)), edit_at(lm, Site("attn_write", 0))))
    result = linearise(lm, plan, sequences, batch_size=8, allow_constant=lambda site: site.kind == "mlp_write")
    assert [edit.has_constant for edit in result.plan.edits] == [True, False]


def test_linear_edits_stay_and_are_not_reported(tiny_lm64, edit_at, sequences):
    lm = tiny_lm64("llama")
    linear = edit_at(lm, Site("attn_write", 0), gate="identity")
    shift = Edit(Site("residual", 1), bias=np.ones(32))
    plan = EditPlan((linear, edit_at(lm, Site("mlp_write", 0)), shift), provenance={"method": "by hand"})
    result = run(lm, plan, sequences)
    assert result.plan.edits[0] is linear
    assert result.plan.edits[2] is shift
    assert [report.index for report in result.reports] == [1]
    assert result.plan.provenance["method"] == "by hand"
    assert result.plan.provenance["refits"] == [result.reports[0].to_json()]
    assert "refits" not in plan.provenance
    alone = EditPlan((linear, shift))
    assert run(lm, alone, []).plan is alone


def test_what_a_chain_reads_is_that_of_the_gated_plan(tiny_lm64, edit_at, sequences):
    lm = tiny_lm64("gpt2")
    site = Site("mlp_write", 0)
    plan = EditPlan((edit_at(lm, site, seed=1), edit_at(lm, site, seed=2, gate="tanh")))
    result = run(lm, plan, sequences)
    rows, _ = stored_rows(lm, plan, 1, parts(sequences)[0])
    design = np.column_stack([rows, np.ones(len(rows))])
    truth = effect(plan.edits[1], rows)
    expected = design @ np.linalg.lstsq(design, truth, rcond=None)[0]
    assert np.linalg.norm(effect(result.plan.edits[1], rows) - expected) <= 1e-8 * np.linalg.norm(expected)


def test_the_same_call_gives_the_same_bits_and_batches_do_not_matter(tiny_lm64, edit_at, sequences, monkeypatch):
    lm = tiny_lm64("opt")
    plan = EditPlan((edit_at(lm, Site("mlp_write", 0)), edit_at(lm, Site("attn_write", 1), gate="tanh")))
    once, again, other = (run(lm, plan, sequences, batch_size=size) for size in (8, 8, 3))
    assert once.reports == again.reports
    assert all(one.equals(two) for one, two in zip(once.plan.edits, again.plan.edits, strict=True))
    monkeypatch.setattr(sums, "_SUMS_BYTES", 1)  # a pass for each edit
    apart = run(lm, plan, sequences)
    assert apart.reports == once.reports
    for edit, others in zip(once.plan.edits, other.plan.edits, strict=True):
        assert np.linalg.norm(edit.right - others.right) <= 1e-4 * np.linalg.norm(edit.right)


def test_reports_are_plain_json(tiny_lm64, edit_at, sequences):
    lm = tiny_lm64("llama")
    (report,) = run(lm, EditPlan((edit_at(lm, Site("residual", 0)),)), sequences).reports
    data = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert (data["index"], data["site"], data["kind"]) == (0, "residual.0", "linearised")
    assert data["explained_variance"] == report.explained_variance == data["held_out"]["explained_variance"]
    assert data["tokens"] + data["held_out_tokens"] == sum(map(len, sequences))
    assert "pre_activation_held_out" not in data


def test_progress_counts_both_readings(tiny_lm64, edit_at, sequences):
    lm = tiny_lm64("llama")
    progress = _CountingProgress()
    run(lm, EditPlan((edit_at(lm, Site("mlp_write", 0)),)), sequences, progress=progress)
    assert progress.done == progress.total == 30 + 40


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positions": "last"}, "last position alone.*inserted module"),
        ({"positions": "last", "gate": "identity"}, "last position alone"),
        ({"reads": "block"}, "hidden units"),
        ({"reads": "block", "gate": "identity"}, "hidden units"),
    ],
)
def test_what_no_weight_can_hold_is_refused_before_the_model_runs(tiny_lm64, edit_at, changes, message):
    lm = tiny_lm64("llama")
    good = edit_at(lm, Site("mlp_write", 0))
    with pytest.raises(BadInputError, match=rf"mlp_write\.1 .*{message}"):
        run(lm, EditPlan((good, replace(good, site=Site("mlp_write", 1), **changes))), [])


def test_texts_that_say_too_little_are_refused(tiny_lm64, edit_at, sequences):
    lm = tiny_lm64("llama")
    plan = EditPlan((edit_at(lm, Site("mlp_write", 0)),))
    for texts, message in (
        (sequences[:3], "3 texts to fit edits on are too few"),
        ([*sequences[:3], []], "text 3 to fit edits on has no token"),
        (sequences[:4], "do not determine a map of the 32 values"),
        ([*sequences, [5] * 300], "too long"),
        ([*sequences, [5, 3000]], "embeds only"),
    ):
        with pytest.raises(BadInputError, match=message):
            run(lm, plan, texts)
    with pytest.raises(BadInputError, match="batch size 0"):
        run(lm, plan, sequences, batch_size=0)
    with pytest.raises(BadInputError, match="layers 0 to 1"):
        run(lm, EditPlan((replace(plan.edits[0], site=Site("mlp_write", 9)),)), sequences)
