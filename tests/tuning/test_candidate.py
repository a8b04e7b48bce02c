from dataclasses import replace

import numpy as np
import pytest

from alignez_bake.capture.statistics import ActivationStatistics
from alignez_bake.errors import BadInputError
from alignez_bake.methods.protocol import FitResult, MethodSettings
from alignez_bake.methods.residual_ridge import RESIDUAL_RIDGE
from alignez_bake.methods.ridge import RIDGE
from alignez_bake.prompts.objective import Objective
from alignez_bake.tuning.candidate import Candidate, TunedObjective, plans_of
from alignez_bake.tuning.remembering_capture import RememberingCapture

RIDGE_2 = Candidate("ridge 2", RIDGE, MethodSettings(strength=2.0), (0, 1))


def objective(name, weight, capture):
    return TunedObjective(Objective(name, "good", "bad"), weight, capture)


def test_a_plan_has_every_objectives_edits_dials_and_positions(demo_lm, demo_objective):
    second = TunedObjective(Objective("humor", "funny", "dull"), -0.5, demo_objective.capture)
    planned = plans_of([replace(RIDGE_2, positions="last")], [demo_objective, second], demo_lm.architecture)[0]
    assert planned.reason is None
    assert [(edit.objective, edit.site.layer) for edit in planned.plan.edits] == [
        ("helpful", 0), ("helpful", 1), ("humor", 0), ("humor", 1)
    ]  # fmt: skip
    assert planned.plan.weights == {"helpful": 1.0, "humor": -0.5}
    assert {edit.positions for edit in planned.plan.edits} == {"last"}
    assert {edit.strength for edit in planned.plan.edits} == {2.0}


def test_what_the_fit_refuses_is_the_reason(demo_lm, demo_objective):
    too_wide = replace(RIDGE_2, settings=MethodSettings(rank=500))
    planned = plans_of([too_wide], [demo_objective], demo_lm.architecture)[0]
    assert planned.plan is None
    assert "rank 500 is not possible" in planned.reason


def test_a_method_that_finds_nothing(demo_lm, demo_objective):
    class Nothing:
        name = "nothing"
        default_strength = 1.0
        has_gates = scores_layers = needs_bias = False

        def fit(self, capture, architecture, layers, settings):
            return FitResult((), ())

    planned = plans_of([replace(RIDGE_2, method=Nothing())], [demo_objective], demo_lm.architecture)[0]
    assert planned.reason == "method 'nothing' found nothing to edit in any layer"


def test_strengths_of_one_method_share_their_recordings(demo_lm, demo_objective):
    """The residual ridge records the layers in front once, however many strengths there are."""
    recorded = []

    def counted(specs, plan=None, *, edited=("plain", "good", "bad")):
        recorded.append(len(specs))
        return demo_objective.capture(specs, plan, edited=edited)

    counted.left_alone = demo_objective.capture.left_alone
    strong = Candidate("strong", RESIDUAL_RIDGE, MethodSettings(strength=1.5), (1, 2))
    gentle = replace(strong, name="gentle", settings=MethodSettings(strength=1.0))
    aim = objective("helpful", 2.0, RememberingCapture(counted))
    planned = plans_of([strong, RIDGE_2, gentle], [demo_objective], demo_lm.architecture)
    assert [each.candidate.name for each in planned] == ["strong", "ridge 2", "gentle"]
    together = plans_of([strong, gentle], [aim], demo_lm.architecture)
    assert recorded == [1, 1, 1]
    for found, again in zip((planned[0], planned[2]), together, strict=True):
        np.testing.assert_array_equal(found.plan.edits[1].right, again.plan.edits[1].right)
        assert [report.site.layer for report in found.sites["helpful"]] == [1, 2]
    assert not np.allclose(planned[0].plan.edits[1].right, planned[2].plan.edits[1].right, rtol=0.05)
    assert together[0].plan.weights == {"helpful": 2.0}


def test_a_refusal_is_that_of_its_candidates_alone(demo_lm, demo_objective):
    wide = Candidate("wide", RESIDUAL_RIDGE, MethodSettings(rank=500), (0,))
    refused, found = plans_of([wide, RIDGE_2], [demo_objective], demo_lm.architecture)
    assert refused.plan is None
    assert "rank 500 is not possible" in refused.reason
    assert found.plan is not None


def test_faults_of_our_own_are_not_caught(demo_lm):
    def broken(specs, plan_so_far=None):
        return ActivationStatistics({}, {})

    with pytest.raises(KeyError):
        plans_of([RIDGE_2], [objective("helpful", 1.0, broken)], demo_lm.architecture)[0]


def test_settings_say_all_that_leads_to_the_edits():
    assert RIDGE_2.settings_json["strength"] == 2.0
    assert replace(RIDGE_2, settings=MethodSettings()).settings_json["strength"] == RIDGE.default_strength
    others = [
        replace(RIDGE_2, method=replace(RIDGE, penalty=0.1)),
        replace(RIDGE_2, method=replace(RIDGE, weight=None)),
        replace(RIDGE_2, settings=MethodSettings(strength=2.0, rank=1)),
        replace(RIDGE_2, settings=MethodSettings(strength=2.0, seed=1)),
        replace(RIDGE_2, layers=(0,)),
        replace(RIDGE_2, positions="last"),
    ]
    assert len({str(candidate.settings_json) for candidate in (RIDGE_2, *others)}) == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": ""}, "'' is no name"),
        ({"name": "base"}, "'base' is the model itself"),
        ({"name": "a\nb"}, "must be printable"),
        ({"layers": ()}, "has no layer to edit"),
        ({"settings": MethodSettings(gated=True)}, "has no gates"),
    ],
)
def test_bad_candidates(change, message):
    with pytest.raises(BadInputError, match=message):
        replace(RIDGE_2, **change)
