"""Residual ridge on live models: the stream comes to where the persona would have it, layer by layer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from alignez_bake.architectures.architecture import architecture_for
from alignez_bake.capture.run import Capture
from alignez_bake.capture.spec import Reading, RowsSpec
from alignez_bake.edit_plan import EditPlan
from alignez_bake.errors import BadInputError
from alignez_bake.methods.protocol import MethodSettings
from alignez_bake.methods.residual_ridge import RESIDUAL_RIDGE
from alignez_bake.site import Site
from alignez_bake.tuning.remembering_capture import RememberingCapture

# Where the edits of a tiny model with random weights can do what they are asked: all directions, hardly a penalty.
EXACT = replace(RESIDUAL_RIDGE, penalty=1e-9, weight=None)


@pytest.fixture(params=["llama", "gpt_neox", "gpt2", "opt"])
def lm(request, tiny_lm64):
    return tiny_lm64(request.param)


def stream(lm, pairs, layer, context, plan=None):
    """The residual stream behind a layer at the shared tokens [n, d]."""
    spec = RowsSpec(Site("residual", layer), Reading(context, "output"), "good", "shared")
    return Capture(lm, pairs)([spec], plan).rows[spec].values


def target(lm, pairs, layer, strength):
    good, bad = (stream(lm, pairs, layer, context) for context in ("good", "bad"))
    return good + (strength - 1) * (good - bad)


def fitted(lm, pairs, method=EXACT, layers=(0, 1), **settings):
    return method.fit(Capture(lm, pairs), lm.architecture, layers, MethodSettings(**settings))


def distance(one, other):
    return np.linalg.norm(one - other)


@pytest.mark.parametrize("strength", [1.0, 1.5])
def test_the_stream_comes_to_the_target_behind_each_layer(strength, lm, pairs):
    edits = fitted(lm, pairs, rank=32, strength=strength).edits
    for layer in (0, 1):
        aim = target(lm, pairs, layer, strength if layer == 1 else 1.0)
        before = distance(stream(lm, pairs, layer, "plain"), aim)
        after = distance(stream(lm, pairs, layer, "plain", EditPlan(edits[: layer + 1])), aim)
        assert before > 0.1 * np.linalg.norm(aim)
        assert after < 0.5 * before


def test_a_layer_is_fitted_with_the_edits_in_front_of_it_in_place(lm, pairs):
    """So its own share is what is missing: the second edit alone, fitted without the first, is another one."""
    both, alone = fitted(lm, pairs, rank=32).edits, fitted(lm, pairs, layers=(1,), rank=32).edits
    aim = target(lm, pairs, 1, 1.0)
    together = distance(stream(lm, pairs, 1, "plain", EditPlan(both)), aim)
    twice = distance(stream(lm, pairs, 1, "plain", EditPlan((both[0], *alone))), aim)
    assert together < 0.7 * twice


def test_the_personas_are_read_from_the_base(lm, pairs):
    """Edits of earlier layers move the stream without persona alone, or the target would run away."""
    calls = []
    capture = Capture(lm, pairs)

    def noted(specs, plan=None, *, edited):
        calls.append((None if plan is None else len(plan.edits), tuple(edited)))
        return capture(specs, plan, edited=edited)

    noted.left_alone, noted.once = capture.left_alone, capture.once
    EXACT.fit(noted, lm.architecture, (1, 0), MethodSettings(rank=2))
    assert calls == [(None, ("plain",)), (1, ("plain",))]


def test_the_layers_in_front_are_recorded_once_for_all_strengths(lm, pairs):
    calls = []
    capture = Capture(lm, pairs)

    def counted(specs, plan=None, *, edited=("plain", "good", "bad")):
        calls.append(len(specs))
        return capture(specs, plan, edited=edited)

    counted.left_alone = capture.left_alone
    remembering = RememberingCapture(counted)
    several = [
        EXACT.fit(remembering, lm.architecture, (0, 1), MethodSettings(rank=3, strength=strength))
        for strength in (1.0, 1.5, 1.0)
    ]
    assert calls == [1, 1, 1, 1]
    for strength, found in zip((1.0, 1.5, 1.0), several, strict=True):
        alone = fitted(lm, pairs, rank=3, strength=strength)
        for one, other in zip(found.edits, alone.edits, strict=True):
            np.testing.assert_array_equal(one.right, other.right)
            np.testing.assert_array_equal(one.left, other.left)
    gentle, strong = several[0].edits, several[1].edits
    np.testing.assert_array_equal(gentle[0].right, strong[0].right)
    assert not np.allclose(gentle[1].right, strong[1].right, rtol=0.1)


def test_figures_and_names(lm, pairs):
    result = fitted(lm, pairs, rank=3, objective="kind")
    assert [str(edit.site) for edit in result.edits] == ["mlp_write.0", "mlp_write.1"]
    for edit, report in zip(result.edits, result.sites, strict=True):
        assert (edit.reads, edit.rank, edit.strength, edit.objective) == ("input", 3, 1.0, "kind")
        assert 0 < report.figures["explained"] <= 1
        assert report.figures["edit_norm"] == pytest.approx(np.linalg.norm(edit.left @ edit.right.T), rel=1e-6)
        assert len(report.figures["contributions"]) == 3


def test_weights_of_disagreement_are_the_default(pairs, tiny_lm64):
    lm = tiny_lm64("llama")
    weighted = fitted(lm, pairs, method=replace(EXACT, weight="disagreement"), rank=32)
    plain = fitted(lm, pairs, rank=32)
    assert RESIDUAL_RIDGE.weight == "disagreement"
    assert not np.allclose(weighted.edits[0].right, plain.edits[0].right)


@pytest.mark.parametrize(
    ("model_type", "says"),
    [("gemma2", "a norm stands between"), ("olmo2", "a norm stands between"), ("granite", "is multiplied")],
)
def test_writers_that_do_not_join_the_stream_as_they_are(model_type, says):
    architecture = architecture_for({"model_type": model_type})
    with pytest.raises(BadInputError, match=f"residual_ridge cannot be fitted .*{says}.*use ridge"):
        RESIDUAL_RIDGE.sites(architecture, (0, 1))


def test_experts_have_no_one_input():
    architecture = architecture_for({"model_type": "mixtral", "num_hidden_layers": 2})
    with pytest.raises(BadInputError, match="every expert has an input of its own; use ridge"):
        RESIDUAL_RIDGE.sites(architecture, (0,))
