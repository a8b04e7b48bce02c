"""The matrix of effects against its definition, written out plainly on a tiny model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from alignez_bake.edit_plan import EditPlan
from alignez_bake.interference import effects as module
from alignez_bake.interference.effects import measured_effects
from alignez_bake.lowering.hooks import edited_by_hooks
from alignez_bake.site import Site
from tests.capture.conftest import pairs, tiny_lm64
from tests.random_edits import random_edit

__all__ = ["pairs", "tiny_lm64"]


@pytest.fixture
def lm(tiny_lm64):
    return tiny_lm64("llama")


def plan_of(lm, **strengths):
    width = lm.model.config.hidden_size
    edits = [
        random_edit(Site("attn_write", 1), width, width, seed=seed, objective=name).scaled(strength)
        for seed, (name, strength) in enumerate(strengths.items())
    ]
    return EditPlan(tuple(edits), weights=dict.fromkeys(strengths, 0.25))


def rows(lm, context, answer):
    """log p of every next token of an answer [answer length, vocabulary]."""
    with torch.no_grad():
        logits = lm.model(torch.tensor([[*context, *answer]])).logits[0].double()
    return torch.log_softmax(logits[len(context) - 1 : -1], dim=-1)


def by_definition(lm, edit, pair, side):
    answer = pair.answers[side]
    contrast = rows(lm, pair.prompts["good"], answer) - rows(lm, pair.prompts["bad"], answer)
    p = rows(lm, pair.prompts["plain"], answer).exp()
    with edited_by_hooks(lm.model, lm.architecture, EditPlan((edit,))):
        q = rows(lm, pair.prompts["plain"], answer).exp()
    return float(((q - p) * contrast).sum())


@pytest.mark.parametrize("kept_bytes", [2**28, 1])
def test_the_matrix_is_that_of_the_definition(lm, pairs, kept_bytes, monkeypatch):
    monkeypatch.setattr(module, "_KEPT_BYTES", kept_bytes)
    plan = plan_of(lm, a=1.0, b=-2.0)
    found = measured_effects(lm, plan, {"a": pairs[:4], "b": pairs[4:]}, batch_size=3)
    for row, edit in enumerate(plan.edits):
        for column, own in enumerate((pairs[:4], pairs[4:])):
            per_query = np.array(
                [np.mean([by_definition(lm, edit, pair, side) for side in ("good", "bad")]) for pair in own]
            )
            effect = found.matrix[row][column]
            assert effect.value == pytest.approx(per_query.mean(), rel=1e-4)
            # Queries are the clusters: the error is that of the mean of their means.
            assert effect.standard_error == pytest.approx(per_query.std(ddof=1) / np.sqrt(len(own)), rel=1e-4)
            assert abs(effect.value) > 1e-5
    assert found.queries == {"a": 4, "b": 3}
    ((dial, margin, share), _) = found.cross()
    assert (dial, margin) == ("a", "b")
    assert share == pytest.approx(found.matrix[0][1].value / found.matrix[1][1].value)


def test_each_query_counts_once_and_evenly_chosen_ones_are_enough(lm, pairs):
    plan = plan_of(lm, a=1.0, b=1.0)
    twice = measured_effects(lm, plan, {"a": [*pairs, pairs[0]], "b": pairs}, batch_size=8)
    assert twice.queries == {"a": 7, "b": 7}
    assert twice.matrix[0][0] == twice.matrix[0][1]
    few = measured_effects(lm, plan, {"a": pairs, "b": [pairs[0], pairs[3]]}, batch_size=8, most_queries=2)
    assert few.queries == {"a": 2, "b": 2}
    # Of seven, the first and the fourth.
    assert few.matrix[0][0].value == pytest.approx(few.matrix[0][1].value, rel=1e-6)


def test_the_model_is_the_base_again_afterwards(lm, pairs):
    before = rows(lm, pairs[0].prompts["plain"], pairs[0].answers["good"])
    measured_effects(lm, plan_of(lm, a=1.0, b=1.0), {"a": pairs, "b": pairs}, batch_size=8)
    assert torch.equal(rows(lm, pairs[0].prompts["plain"], pairs[0].answers["good"]), before)
