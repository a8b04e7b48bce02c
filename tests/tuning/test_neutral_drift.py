from functools import partial

import pytest

from alignez_bake.edit_plan import EditPlan
from alignez_bake.errors import BadInputError
from alignez_bake.evaluation.drift import kl_on_texts
from alignez_bake.lowering.hooks import edited_by_hooks
from alignez_bake.tuning.neutral_drift import NeutralDrift
from tests.baking import plan_for

TEXTS = ["A bell rings in the morning.", "Rain.", "", "The river is wide, and nobody swims."]


@pytest.mark.parametrize("most_bytes", [1 << 28, 0])
def test_the_drift_of_each_plan_is_that_of_evaluation(lm, form, most_bytes, monkeypatch):
    calls = []
    real = kl_on_texts
    monkeypatch.setattr(
        "alignez_bake.tuning.neutral_drift.kl_on_texts", lambda *a, **k: calls.append(a) or real(*a, **k)
    )
    drift = NeutralDrift(lm, TEXTS, form, batch_size=2, most_bytes=most_bytes)
    plan = plan_for(lm.folder.path)
    for edited in (plan, plan.scaled(0.3)):
        editing = partial(edited_by_hooks, lm.model, lm.architecture, edited)
        expected = kl_on_texts(lm, lm, TEXTS, form, batch_size=2, editing=editing)
        assert expected > 1e-3
        assert drift(edited) == pytest.approx(expected, rel=1e-6)
    assert drift(EditPlan(())) == 0
    assert len(calls) == (0 if most_bytes else 3)


def test_the_bases_loss_is_the_same_kept_or_not(lm, form):
    kept, anew = (NeutralDrift(lm, TEXTS, form, batch_size=2, most_bytes=most) for most in (1 << 28, 0))
    assert kept.base_loss() == pytest.approx(anew.base_loss(), rel=1e-6)
    assert kept.base_loss() > 1
    plan = plan_for(lm.folder.path)
    assert kept(plan) == pytest.approx(anew(plan), rel=1e-6)


def test_bad_texts(lm, form):
    with pytest.raises(BadInputError, match="none of 2 texts has two tokens"):
        NeutralDrift(lm, ["", ""], form, batch_size=2)
    with pytest.raises(BadInputError, match="256 positions"):
        NeutralDrift(lm, ["Rain. ", "Rain. " * 200], form, batch_size=2)
