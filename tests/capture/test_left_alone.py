"""Texts that edits should leave alone: what is recorded of them, and what the fits make of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from alignez_bake.capture.left_alone import chosen_texts
from alignez_bake.capture.recorder import MapReading
from alignez_bake.capture.run import Capture
from alignez_bake.capture.statistics import Moments, TokenRows
from alignez_bake.edit_plan import EditPlan
from alignez_bake.errors import BadInputError
from alignez_bake.lowering.hooks import edited_by_hooks
from alignez_bake.methods.contrastive_decoding import CONTRASTIVE_DECODING
from alignez_bake.methods.protocol import MethodSettings
from alignez_bake.methods.residual_ridge import RESIDUAL_RIDGE
from alignez_bake.site import Site
from tests.random_edits import random_edit
from tests.tiny_models import CONTEXT, VOCABULARY

TEXTS = [tuple(np.random.default_rng(seed).integers(3, VOCABULARY, 4 + seed).tolist()) for seed in range(12)]
READ, STREAM = MapReading(Site("mlp_write", 1), "input"), MapReading(Site("residual", 1), "output")


def test_rows_are_those_of_each_text_by_itself_with_the_edits_in_place(pairs, tiny_lm64):
    lm = tiny_lm64("llama")
    plan = EditPlan((random_edit(Site("mlp_write", 0), 32, 32),))
    capture = Capture(lm, pairs, batch_size=5, left_alone=TEXTS)
    found = capture.left_alone([READ, STREAM], plan)
    assert found[STREAM].shape == (sum(map(len, TEXTS)), 32)
    assert found[READ].shape == (sum(map(len, TEXTS)), 64)
    first = 0
    for text in TEXTS:
        with edited_by_hooks(lm.model, lm.architecture, plan), torch.no_grad():
            run = lm.model.model(torch.tensor([text]), use_cache=False)
        # What the head reads is normed: the stream behind the last layer is what enters that norm.
        normed = lm.model.model.norm(torch.tensor(found[STREAM][first : first + len(text)], dtype=torch.float64))
        np.testing.assert_allclose(normed.detach(), run.last_hidden_state[0], rtol=1e-4, atol=1e-5)
        first += len(text)
    unedited = capture.left_alone([STREAM])[STREAM]
    assert np.linalg.norm(unedited - found[STREAM]) > 0.01 * np.linalg.norm(unedited)


def test_without_texts_there_is_nothing(pairs, tiny_lm64):
    assert Capture(tiny_lm64("llama"), pairs).left_alone([READ]) is None


def test_a_text_that_the_model_has_no_room_for(pairs, tiny_lm64):
    with pytest.raises(BadInputError, match=str(CONTEXT)):
        Capture(tiny_lm64("gpt2"), pairs, left_alone=[(5,) * (CONTEXT + 1)])


def test_long_lists_of_texts_are_sampled_evenly():
    assert chosen_texts(TEXTS, 10_000) == TEXTS
    few = chosen_texts(TEXTS, 40)
    assert few == TEXTS[::3]
    assert sum(map(len, few)) <= 2 * 40


@pytest.mark.parametrize("count", [3, 40])
def test_rows_at_which_nothing_is_wanted_count_as_much_as_the_others(count):
    rng = np.random.default_rng(1)
    z, d, more = rng.normal(size=(20, 6)), rng.normal(size=(20, 4)), rng.normal(size=(count, 6))
    z, d, more = (each.astype(np.float32) for each in (z, d, more))
    moments = Moments.of(z.astype(np.float64), d.astype(np.float64)).with_nothing_wanted(more)
    rows = TokenRows(z, d, 20).with_nothing_wanted(more)
    again = rows.moments()
    np.testing.assert_allclose(moments.ztz, again.ztz, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(moments.ztd, again.ztd, rtol=1e-5, atol=1e-5)
    assert moments.d_square == pytest.approx(again.d_square)
    weight = np.trace(moments.ztz - z.T.astype(np.float64) @ z) / np.square(more).sum()
    assert weight == pytest.approx(20 / count, rel=1e-5)


def drift(lm, edits):
    """How far the edits move the logits of the texts, relative to these."""
    ids = [torch.tensor([text]) for text in TEXTS]
    with torch.no_grad():
        before = torch.cat([lm.model(each).logits[0] for each in ids])
        with edited_by_hooks(lm.model, lm.architecture, EditPlan(tuple(edits))):
            after = torch.cat([lm.model(each).logits[0] for each in ids])
    return float((after - before).norm() / before.norm())


@pytest.mark.parametrize("method", [RESIDUAL_RIDGE, replace(CONTRASTIVE_DECODING, penalty=1e-4, steps=60)])
@pytest.mark.parametrize("model_type", ["llama", "gpt_neox"])
def test_what_is_left_alone_moves_less(method, model_type, pairs, tiny_lm64):
    lm = tiny_lm64(model_type)
    moved = [
        drift(
            lm,
            method.fit(
                Capture(lm, pairs, left_alone=texts), lm.architecture, (0, 1), MethodSettings(strength=1.0)
            ).edits,
        )
        for texts in ((), TEXTS)
    ]
    assert moved[0] > 1e-2
    assert moved[1] < 0.8 * moved[0]


def test_the_last_layer_sees_at_most_two_thirds_as_many_tokens_of_them(pairs, tiny_lm64):
    lm = tiny_lm64("llama")
    tokens = [
        CONTRASTIVE_DECODING.fit(Capture(lm, pairs, left_alone=texts), lm.architecture, (0, 1), MethodSettings())
        .sites[-1]
        .figures["tokens"]
        for texts in ((), TEXTS)
    ]
    assert tokens[1] == tokens[0] + 2 * tokens[0] // 3
