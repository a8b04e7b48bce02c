"""Contrastive decoding, baked: on live models, what is predicted comes to what equation (1) asks for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from alignez_bake.architectures.architecture import architecture_for
from alignez_bake.capture.run import Capture
from alignez_bake.capture.spec import Reading, RowsSpec
from alignez_bake.edit_plan import EditPlan
from alignez_bake.errors import BadInputError
from alignez_bake.language_model import readout as readout_module
from alignez_bake.language_model.readout import Head, checked_readout
from alignez_bake.lowering.hooks import edited_by_hooks
from alignez_bake.methods.contrastive_decoding import CONTRASTIVE_DECODING
from alignez_bake.methods.protocol import MethodSettings
from alignez_bake.methods.readout_fit import Aim, ReadoutRows, descent_start
from alignez_bake.methods.residual_ridge import RESIDUAL_RIDGE
from alignez_bake.site import Site
from alignez_bake.tuning.remembering_capture import RememberingCapture

LAST = Site("residual", 1)
METHOD = replace(CONTRASTIVE_DECODING, penalty=1e-4, steps=60, head_penalty=None)
"""Without a change of the head, which has tests of its own below."""
WITH_HEAD = replace(METHOD, head_penalty=1e-3)


@pytest.fixture(params=["llama", "gpt_neox", "gpt2", "opt"])
def lm(request, tiny_lm64):
    return tiny_lm64(request.param)


def fitted(lm, pairs, method=METHOD, layers=(0, 1), **settings):
    return method.fit(Capture(lm, pairs), lm.architecture, layers, MethodSettings(**settings))


def predictions(lm, pairs, context, plan=None):
    """Next-token distributions at the shared tokens [n, V], and which of the rows predict the answer."""
    spec = RowsSpec(LAST, Reading(context, "output"), "good", "shared")
    capture = Capture(lm, pairs)
    rows = capture([spec], plan, edited=("plain",)).rows[spec]
    stream = torch.tensor(rows.values)
    with torch.no_grad():
        return capture.readout().log_probabilities(stream).double().exp().numpy(), rows.predicts_answer


def wanted(good, bad, strength, plausible=0.05):
    """Equation (1), naively, one row after the other."""
    found = np.zeros_like(good)
    for row, (p, q) in enumerate(zip(good, bad, strict=True)):
        kept = p >= plausible * p.max()
        found[row, kept] = p[kept] ** strength * (p[kept] / q[kept]) ** (strength - 1)
    return found / found.sum(axis=1, keepdims=True)


def divergence(aim, predicted):
    kept = aim > 0
    return np.where(kept, aim * np.log(np.where(kept, aim / predicted, 1.0)), 0.0).sum(axis=1)


@pytest.mark.parametrize("strength", [1.0, 2.0])
def test_the_edited_model_predicts_what_is_asked_for(strength, lm, pairs):
    """The figures of the fit are those of the model with the edits hooked in."""
    everything = replace(METHOD, most_plausible=10_000)
    result = fitted(lm, pairs, everything, rank=24, strength=strength)
    figures = result.sites[-1].figures
    good, answers = predictions(lm, pairs, "good")
    bad, _ = predictions(lm, pairs, "bad")
    aim = wanted(good, bad, strength)
    before, _ = predictions(lm, pairs, "plain", EditPlan(result.edits[:1]))
    after, _ = predictions(lm, pairs, "plain", EditPlan(result.edits))
    assert answers.any()
    assert not answers.all()
    of_answers = [divergence(aim, found)[answers].mean() for found in (before, after)]
    assert of_answers[1] < 0.6 * of_answers[0]
    assert figures["divergence_after"] < 0.6 * figures["divergence_before"]
    assert figures["tokens"] == len(answers)
    assert figures["edit_norm"] == pytest.approx(np.linalg.norm(result.edits[-1].left @ result.edits[-1].right.T))


def test_the_figure_is_the_weighted_divergence(pairs, tiny_lm64):
    """With every token counted in full, `divergence_after` can be computed from the edited model alone."""
    lm = tiny_lm64("llama")
    result = fitted(lm, pairs, replace(METHOD, most_plausible=10_000), rank=8)
    good, answers = predictions(lm, pairs, "good")
    bad, _ = predictions(lm, pairs, "bad")
    after, _ = predictions(lm, pairs, "plain", EditPlan(result.edits))
    spread = divergence(wanted(good, bad, 2.0), after)
    assert spread[answers].min() <= result.sites[-1].figures["divergence_after"] <= spread.max()


def test_layers_before_the_last_are_those_of_residual_ridge(lm, pairs):
    ours = fitted(lm, pairs, strength=3.0, objective="kind").edits
    theirs = RESIDUAL_RIDGE.fit(Capture(lm, pairs), lm.architecture, (0, 1), MethodSettings(strength=1.0)).edits
    np.testing.assert_array_equal(ours[0].right, theirs[0].right)
    assert [str(edit.site) for edit in ours] == ["mlp_write.0", "mlp_write.1"]
    assert {(edit.reads, edit.strength, edit.objective) for edit in ours} == {("input", 1.0, "kind")}
    assert not np.allclose(ours[1].left @ ours[1].right.T, theirs[1].left @ theirs[1].right.T, rtol=0.1)


def test_strengths_share_their_recordings(pairs, tiny_lm64):
    lm, recorded = tiny_lm64("llama"), []
    capture = Capture(lm, pairs)

    class Counted:
        readout = staticmethod(capture.readout)
        left_alone = staticmethod(capture.left_alone)

        def __call__(self, specs, plan=None, *, edited=("plain", "good", "bad")):
            recorded.append(len(specs))
            return capture(specs, plan, edited=edited)

    remembering = RememberingCapture(Counted())
    found = [
        METHOD.fit(remembering, lm.architecture, (0, 1), MethodSettings(strength=strength)) for strength in (1.0, 3.0)
    ]
    assert recorded == [1, 3, 2]
    METHOD.fit(remembering, lm.architecture, (0, 1), MethodSettings(rank=7, penalty=0.5))
    assert recorded == [1, 3, 2]
    METHOD.fit(remembering, lm.architecture, (0, 1), MethodSettings(rank=2))
    METHOD.fit(remembering, lm.architecture, (1,), MethodSettings())
    assert recorded == [1, 3, 2, 2, 1]  # what is read of the base is remembered by itself
    for strength, result in zip((1.0, 3.0), found, strict=True):
        np.testing.assert_array_equal(result.edits[1].right, fitted(lm, pairs, strength=strength).edits[1].right)
    assert not np.allclose(found[0].edits[1].right, found[1].edits[1].right, rtol=0.1)


def test_the_penalty_trades_the_aim_for_what_is_kept(pairs, tiny_lm64):
    loose, tight = (
        fitted(tiny_lm64("llama"), pairs, replace(METHOD, penalty=penalty)).sites[-1].figures for penalty in (1e-4, 3.0)
    )
    assert tight["kept"] < 0.8 * loose["kept"]
    assert tight["edit_norm"] < 0.5 * loose["edit_norm"]
    assert loose["divergence_after"] < tight["divergence_after"] < tight["divergence_before"]


def test_a_sample_of_the_tokens_is_bounded(pairs, tiny_lm64):
    result = fitted(tiny_lm64("llama"), pairs, replace(METHOD, most_tokens=20))
    assert result.sites[-1].figures["tokens"] == 20


def test_without_the_last_layer_nothing_is_read_out(lm, pairs):
    with pytest.raises(BadInputError, match="only layers up to 0 may be edited: let --layers end there"):
        fitted(lm, pairs, layers=(0,))


def test_a_rank_above_the_widths(lm, pairs):
    with pytest.raises(BadInputError, match=r"mlp_write.1: rank 500 is not possible"):
        fitted(lm, pairs, METHOD, layers=(1,), rank=500)


def test_a_soft_cap_on_the_logits_is_no_norm_and_head(tiny_lm64):
    with pytest.raises(BadInputError, match="are not those of its last norm and its head"):
        checked_readout(tiny_lm64("gemma2"), [5, 6, 7])


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gpt_neox", "opt", "gpt2"])
def test_the_readout_is_the_models_own(model_type, tiny_lm64):
    lm = tiny_lm64(model_type)
    readout = checked_readout(lm, [5, 6, 7])
    assert readout.last_layer == 1
    assert readout.vocabulary_size == lm.vocabulary_size


def test_refusals_name_this_method():
    with pytest.raises(BadInputError, match="contrastive_decoding cannot be fitted"):
        CONTRASTIVE_DECODING.sites(architecture_for({"model_type": "gemma2"}), (0, 1))


def live_predictions(lm, pairs, plan):
    """Next-token distributions of the hooked model at the shared tokens, head included."""
    spec = RowsSpec(LAST, Reading("plain", "output"), "good", "shared")
    capture = Capture(lm, pairs)
    rows = capture([spec], EditPlan(plan.edits[:2]), edited=("plain",)).rows[spec]
    head = lm.model.get_output_embeddings()
    final_norm = lm.model.get_submodule(lm.architecture.final_norm)
    with torch.no_grad(), edited_by_hooks(lm.model, lm.architecture, EditPlan(plan.edits[2:])):
        return head(final_norm(torch.tensor(rows.values)[None]))[0].double().softmax(-1).numpy()


@pytest.mark.parametrize("model_type", ["llama", "gpt_neox"])
def test_the_head_goes_on_where_the_last_writer_stops(model_type, pairs, tiny_lm64):
    """Its figures are those of the hooked model, and the rest of the plan is what it is without it."""
    lm = tiny_lm64(model_type)
    method = replace(WITH_HEAD, most_plausible=10_000)
    with_head = fitted(lm, pairs, method, rank=12, strength=1.5)
    without = fitted(lm, pairs, replace(method, head_penalty=None), rank=12, strength=1.5)
    assert [str(edit.site) for edit in with_head.edits] == ["mlp_write.0", "mlp_write.1", "lm_head"]
    for ours, theirs in zip(with_head.edits, without.edits, strict=False):
        np.testing.assert_array_equal(ours.right, theirs.right)
    figures = with_head.sites[-1].figures
    assert figures["divergence_before"] == pytest.approx(without.sites[-1].figures["divergence_after"], rel=1e-6)
    assert figures["divergence_after"] < 0.7 * figures["divergence_before"]
    good, answers = predictions(lm, pairs, "good")
    bad, _ = predictions(lm, pairs, "bad")
    aim = wanted(good, bad, 1.5)
    before, after = (live_predictions(lm, pairs, EditPlan(each.edits)) for each in (without, with_head))
    of_answers = [divergence(aim, found)[answers].mean() for found in (before, after)]
    assert of_answers[1] < 0.7 * of_answers[0]


def test_the_heads_penalty_bounds_its_change(pairs, tiny_lm64):
    loose, tight = (
        fitted(tiny_lm64("llama"), pairs, replace(METHOD, head_penalty=penalty)).sites[-1].figures
        for penalty in (1e-3, 10.0)
    )
    assert tight["kept"] < loose["kept"]
    assert tight["edit_norm"] < 0.5 * loose["edit_norm"]
    assert loose["divergence_after"] < tight["divergence_after"] <= tight["divergence_before"]


@pytest.mark.parametrize(("method", "field"), [(METHOD, "penalty"), (WITH_HEAD, "head_penalty")])
def test_the_penalty_that_is_asked_for_is_that_of_the_last_fit(pairs, tiny_lm64, method, field):
    lm = tiny_lm64("llama")
    asked, own = fitted(lm, pairs, method, penalty=0.7), fitted(lm, pairs, replace(method, **{field: 0.7}))
    assert method.default_penalty == getattr(method, field)
    for ours, theirs in zip(asked.edits, own.edits, strict=True):
        np.testing.assert_array_equal(ours.right, theirs.right)
    assert not np.allclose(asked.edits[-1].right, fitted(lm, pairs, method).edits[-1].right, rtol=0.1)


@pytest.mark.parametrize(("rank", "ranks"), [(2, [2, 2, 2]), (9, [4, 9, 9]), (None, [4, 32, 32])])
def test_a_rank_above_the_imitations_own_is_for_the_last_layer_and_the_head(pairs, tiny_lm64, rank, ranks):
    found = fitted(tiny_lm64("llama"), pairs, replace(WITH_HEAD, steps=2), rank=rank)
    assert [edit.rank for edit in found.edits] == ranks


def test_a_tied_head_stays_and_that_is_said(pairs, tiny_lm64):
    result = fitted(tiny_lm64("gpt2"), pairs, WITH_HEAD)
    assert [str(edit.site) for edit in result.edits] == ["mlp_write.0", "mlp_write.1"]
    assert len(result.notes) == 1
    assert "tied to the token embedding" in result.notes[0]
    assert fitted(tiny_lm64("llama"), pairs, WITH_HEAD).notes == ()


def test_a_tied_head_is_changed_when_it_may_be_untied(pairs, tiny_lm64):
    lm = tiny_lm64("gpt2")
    result = fitted(lm, pairs, WITH_HEAD, untie=True)
    assert [str(edit.site) for edit in result.edits] == ["mlp_write.0", "mlp_write.1", "lm_head"]
    assert result.edits[-1].left.shape[0] == lm.vocabulary_size
    assert result.notes == ()


def test_the_method_changes_the_head_unless_told_otherwise():
    assert CONTRASTIVE_DECODING.head_penalty is not None


def test_predictions_that_are_right_already_give_the_head_nothing_to_do(tiny_lm64):
    readout = checked_readout(tiny_lm64("llama"), [5, 6, 7])
    stream = torch.randn(6, 32, dtype=readout.dtype, generator=torch.Generator().manual_seed(0))
    rows = ReadoutRows(*[readout.normed(stream)] * 3)
    nothing = Aim(torch.zeros(6, 1, dtype=torch.long), torch.ones(6, 1, dtype=readout.dtype), torch.zeros(6))
    with pytest.raises(BadInputError, match="lm_head: no change would bring predictions nearer"):
        descent_start(Site("lm_head"), readout.head, rows, nothing, rank=2, penalty=0.1, seed=0)


@pytest.mark.parametrize("bias", [False, True])
def test_a_head_of_16_bits_is_widened_in_parts(bias, monkeypatch):
    """Log-probabilities, gradients and products are those of the whole weight in float32, of which there is no copy."""
    monkeypatch.setattr(readout_module, "_WIDENED_VALUES", 8 * 7)  # seven rows at a time, the last part has four
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(60, 8, generator=generator).bfloat16()
    added = torch.randn(60, generator=generator) if bias else None
    head = Head(weight, added, torch.float32)
    assert head.weight.data_ptr() == weight.data_ptr()
    rows = torch.randn(5, 8, generator=generator, requires_grad=True)
    copied = rows.detach().clone().requires_grad_()
    found = head.log_probabilities(rows)
    expected = torch.nn.functional.linear(copied, weight.float(), added).log_softmax(-1)
    torch.testing.assert_close(found, expected)
    for each in (found, expected):
        each[:, 3].sum().backward()
    assert rows.grad.abs().max() > 0.1
    torch.testing.assert_close(rows.grad, copied.grad)
    columns = np.random.default_rng(0).normal(size=(8, 2))
    np.testing.assert_allclose(head.times(columns), weight.double().numpy() @ columns, rtol=1e-12)


def test_the_readout_holds_the_models_own_head(tiny_lm64):
    lm = tiny_lm64("llama")
    readout = checked_readout(lm, [5, 6, 7])
    assert readout.head.weight.data_ptr() == lm.model.get_output_embeddings().weight.data_ptr()
