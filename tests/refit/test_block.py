"""Edits that read the MLP's input in place of its output, against least squares on stored activations."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from alignez_bake.edit import Edit
from alignez_bake.edit_plan import EditPlan
from alignez_bake.errors import BadInputError
from alignez_bake.lowering.hooks import edited_by_hooks
from alignez_bake.refit.block import refit_block
from alignez_bake.site import Site
from tests.refit.recorded import effect, hidden, parts, share, stored_rows

MODEL_TYPES = ("llama", "gpt2", "opt", "gemma2", "gpt_neox", "qwen3")


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize(("reads", "gate"), [("output", "relu"), ("input", "tanh"), ("output", "identity")])
def test_the_pre_activation_is_fitted_as_lstsq_does(tiny_lm64, edit_at, sequences, model_type, reads, gate):
    lm = tiny_lm64(model_type)
    edit = replace(edit_at(lm, Site("mlp_write", 1), reads=reads, gate=gate), strength=0.7)
    plan = EditPlan((edit_at(lm, Site("mlp_write", 1), gate="identity", objective="other", seed=9), edit))
    result = refit_block(lm, EditPlan((edit,)), sequences, batch_size=8)
    (new,), (report,) = result.plan.edits, result.reports
    assert (new.reads, new.gate, new.site, new.strength) == ("block", gate, edit.site, 0.7)
    assert np.array_equal(new.left, edit.left)
    assert np.array_equal(new.bias, edit.bias)
    best = None
    for part, figures, inner in (
        (parts(sequences)[0], report.fitted, report.pre_activation_fitted),
        (parts(sequences)[1], report.held_out, report.pre_activation_held_out),
    ):
        rows, block = stored_rows(lm, EditPlan((edit,)), 0, part, block=True)
        design = np.column_stack([block, np.ones(len(block))])
        truth = hidden(edit, rows, "identity")
        if best is None:
            best = np.linalg.lstsq(design, truth, rcond=None)[0]
        expected = design @ best
        assert np.linalg.norm(hidden(new, block, "identity") - expected) <= 1e-8 * np.linalg.norm(expected)
        assert inner.uncentred == pytest.approx(share(truth, expected), abs=1e-8)
        assert figures.uncentred == pytest.approx(share(effect(edit, rows), effect(new, block)), abs=1e-8)
        assert figures.tokens == inner.tokens == len(rows)
    assert 0.0 < report.pre_activation_fitted.centred < 0.9999
    assert report.explained_variance != report.explained_variance_fitted
    assert report.explained_variance < 0.9999
    assert len(refit_block(lm, plan, sequences, batch_size=8).reports) == 2


@pytest.mark.parametrize("model_type", ["llama", "opt", "gpt_neox"])
def test_what_the_block_determines_is_recovered(tiny_lm64, edit_at, sequences, model_type):
    """An affine MLP: its writer's input is made an affine map of the block's, so t is one of x."""
    lm = tiny_lm64(model_type)
    site = Site("mlp_write", 0)
    plan = EditPlan((edit_at(lm, site, reads="input"),))
    writer = lm.model.get_submodule(lm.architecture.module_path(site))
    block = lm.model.get_submodule(lm.architecture.block_path(site))
    mixing = torch.randn(
        lm.model.config.hidden_size, writer.weight.shape[1], generator=torch.Generator().manual_seed(1)
    )
    seen = []
    handles = [
        block.register_forward_pre_hook(lambda _m, args: seen.__setitem__(slice(None), [args[0]])),
        writer.register_forward_pre_hook(lambda _m, args: (seen[0] @ mixing.double() / 6.0 + 0.3,)),
    ]
    try:
        result = refit_block(lm, plan, sequences, batch_size=8)
        (report,) = result.reports
        with torch.no_grad():
            found = []
            for which in (EditPlan(()), plan, result.plan):
                with edited_by_hooks(lm.model, lm.architecture, which):
                    found.append(torch.cat([lm.model(torch.tensor([ids])).logits[0] for ids in sequences[:6]]))
    finally:
        for handle in handles:
            handle.remove()
    for figures in (report.held_out, report.fitted, report.pre_activation_held_out):
        assert figures.uncentred == pytest.approx(1.0, abs=1e-10)
    assert float((found[2] - found[1]).norm()) <= 1e-6 * float(found[1].norm())
    assert float((found[0] - found[1]).norm()) > 1e-4 * float(found[1].norm())


def test_a_gate_that_never_opens_stays_shut(tiny_lm64, edit_at, sequences):
    lm = tiny_lm64("llama")
    plan = EditPlan((edit_at(lm, Site("mlp_write", 0), offset=-1000.0, bias=False),))
    (report,) = refit_block(lm, plan, sequences, batch_size=8).reports
    assert report.explained_variance is None
    assert report.held_out.residual_rms == 0.0
    assert report.pre_activation_held_out.centred < 0.9999
    data = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert data["kind"] == "block"
    assert data["pre_activation_held_out"]["tokens"] == data["held_out_tokens"]


def test_what_needs_no_hidden_units_stays(tiny_lm64, edit_at, sequences):
    lm = tiny_lm64("llama")
    kept = (
        edit_at(lm, Site("attn_write", 0), gate="identity"),
        edit_at(lm, Site("mlp_write", 0), reads="block"),
        Edit(Site("mlp_write", 0), bias=np.ones(32)),
    )
    plan = EditPlan((*kept, edit_at(lm, Site("mlp_write", 0))))
    result = refit_block(lm, plan, sequences, batch_size=8)
    assert result.plan.edits[:3] == kept
    assert [report.index for report in result.reports] == [3]
    again = refit_block(lm, result.plan, [], batch_size=8)
    assert again.plan is result.plan
    assert again.reports == ()


def test_determinism(tiny_lm64, edit_at, sequences):
    lm = tiny_lm64("qwen3")
    plan = EditPlan((edit_at(lm, Site("mlp_write", 0)), edit_at(lm, Site("mlp_write", 0), seed=2)))
    once, again = (refit_block(lm, plan, sequences, batch_size=8) for _ in range(2))
    assert once.reports == again.reports
    assert all(one.equals(two) for one, two in zip(once.plan.edits, again.plan.edits, strict=True))


@pytest.mark.parametrize(
    ("site", "changes", "message"),
    [
        (Site("attn_write", 0), {}, "hidden units of the MLP, which change the output of the MLP's writer alone"),
        (Site("residual", 0), {}, r"residual\.0 \(gate 'relu'\) cannot be carried"),
        (Site("attn_write", 0), {"reads": "block", "gate": "identity"}, r"attn_write\.0 \(reads 'block'\)"),
        (Site("mlp_write", 0), {"positions": "last"}, "last position alone.*inserted module"),
    ],
)
def test_what_hidden_units_cannot_carry_is_refused_before_the_model_runs(tiny_lm64, edit_at, site, changes, message):
    lm = tiny_lm64("llama")
    plan = EditPlan((edit_at(lm, Site("mlp_write", 1)), replace(edit_at(lm, site), **changes)))
    with pytest.raises(BadInputError, match=message):
        refit_block(lm, plan, [], batch_size=8)
