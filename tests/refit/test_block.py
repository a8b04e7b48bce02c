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
from alignez_bake.progress import NoProgress
from alignez_bake.refit import block as block_module
from alignez_bake.refit.block import refit_block
from alignez_bake.site import Site
from tests.capture.test_run import _CountingProgress
from tests.refit.recorded import GATES, effect, hidden, parts, share, stored_rows

MODEL_TYPES = ("llama", "gpt2", "opt", "gemma2", "gpt_neox", "qwen3")


def lstsq(block, truth):
    """The best affine map of x, as a function."""
    best = np.linalg.lstsq(with_one(block), truth, rcond=None)[0]
    return lambda x: with_one(x) @ best


def with_one(x):
    return np.column_stack([x, np.ones(len(x))])


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("reads", ["output", "input"])
def test_without_a_gate_it_is_lstsq_of_the_pre_activation(tiny_lm64, edit_at, sequences, model_type, reads):
    lm = tiny_lm64(model_type)
    edit = replace(edit_at(lm, Site("mlp_write", 1), reads=reads, gate="identity"), strength=0.7)
    plan = EditPlan((edit,))
    result = refit_block(lm, plan, sequences, batch_size=8)
    (new,), (report,) = result.plan.edits, result.reports
    assert (new.reads, new.gate, new.site, new.strength) == ("block", "identity", edit.site, 0.7)
    fitting, held_out = (stored_rows(lm, plan, 0, part, block=True) for part in parts(sequences))
    fit = lstsq(fitting[1], hidden(edit, fitting[0]))
    for _, block in (fitting, held_out):
        assert np.linalg.norm(hidden(new, block) - fit(block)) <= 1e-8 * np.linalg.norm(fit(block))
    assert report.pre_activation_fitted.uncentred == pytest.approx(
        share(hidden(edit, fitting[0]), fit(fitting[1])), abs=1e-8
    )
    assert 0.0 < report.pre_activation_fitted.centred < 0.9999


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize(("reads", "gate"), [("output", "relu"), ("input", "tanh")])
def test_with_a_gate_it_is_better_than_either_lstsq(tiny_lm64, edit_at, sequences, model_type, reads, gate):
    """And figures are those of numpy on stored activations."""
    lm = tiny_lm64(model_type)
    edit = replace(edit_at(lm, Site("mlp_write", 1), reads=reads, gate=gate, scale=2.0), strength=-0.7)
    plan = EditPlan((edit,))
    result = refit_block(lm, plan, sequences, batch_size=8)
    (new,), (report,) = result.plan.edits, result.reports
    assert (new.reads, new.gate, new.site, new.strength) == ("block", gate, edit.site, -0.7)
    assert np.array_equal(new.left, edit.left)
    assert np.array_equal(new.bias, edit.bias)
    fitting, held_out = (stored_rows(lm, plan, 0, part, block=True) for part in parts(sequences))
    for (rows, block), figures, inner in (
        (fitting, report.fitted, report.pre_activation_fitted),
        (held_out, report.held_out, report.pre_activation_held_out),
    ):
        assert figures.uncentred == pytest.approx(share(effect(edit, rows), effect(new, block)), abs=1e-8)
        truth, found = hidden(edit, rows, "identity"), hidden(new, block, "identity")
        assert inner.uncentred == pytest.approx(share(truth, found), abs=1e-8)
        assert figures.tokens == inner.tokens == len(rows)
    rows, block = fitting
    for target in ("identity", gate):
        gated = GATES[gate](lstsq(block, hidden(edit, rows, target))(block))
        other = share(effect(edit, rows), edit.strength * (gated @ edit.left.T + edit.bias))
        assert report.explained_variance_fitted > other + 1e-4
    assert report.explained_variance != report.explained_variance_fitted
    assert 0.0 < report.explained_variance < 0.9999
    assert 0.0 < report.explained_variance_fitted < 0.9999


@pytest.mark.parametrize(
    ("model_type", "gate"), [("llama", "relu"), ("gpt2", "relu"), ("llama", "tanh"), ("gpt2", "tanh"), ("opt", "tanh")]
)
def test_the_steps_end_where_nothing_affine_explains_more(tiny_lm64, edit_at, sequences, monkeypatch, model_type, gate):
    """The normal equations with the gate in place: Σ z (g(f) - h) = 0."""
    monkeypatch.setattr(block_module, "_STEPS", 14)
    lm = tiny_lm64(model_type)
    plan = EditPlan((edit_at(lm, Site("mlp_write", 0), gate=gate),))
    fitting, _ = parts(sequences)
    rows, block = stored_rows(lm, plan, 0, fitting, block=True)
    solver = block_module._BlockSolver(lm, plan, fitting, width=block.shape[1], batch_size=8, progress=NoProgress())
    cosines = []
    for new in solver.candidates([0])[0]:
        z, left = with_one(block), hidden(new, block) - hidden(plan.edits[0], rows)
        cosines.append((np.linalg.norm(z.T @ left, axis=0) / np.linalg.norm(z) / np.linalg.norm(left, axis=0)).max())
    assert cosines[-1] <= 1e-8
    assert min(cosines[:3]) > 1e-3  # least squares on t and on h, and one step


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
    assert report.pre_activation_held_out.centred < 0.9999  # the gate is shut, t is not what it was
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


def test_progress_counts_every_reading(tiny_lm64, edit_at, sequences):
    lm = tiny_lm64("llama")
    for gate, readings in (("identity", 30 + 40), ("tanh", 30 + 6 * 30 + 40)):
        progress = _CountingProgress()
        plan = EditPlan((edit_at(lm, Site("mlp_write", 0), gate=gate),))
        refit_block(lm, plan, sequences, batch_size=8, progress=progress)
        assert progress.done == progress.total == readings
