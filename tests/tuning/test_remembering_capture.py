from dataclasses import replace

import numpy as np
import pytest

from alignez_bake.capture.spec import CONTEXTS, MomentsSpec, Reading, RowsSpec
from alignez_bake.capture.statistics import ActivationStatistics, Moments, Rows, TokenRows
from alignez_bake.edit import Edit
from alignez_bake.edit_plan import EditPlan
from alignez_bake.site import Site
from alignez_bake.tuning.remembering_capture import RememberingCapture

ROWS = [RowsSpec(Site("mlp_write", layer), Reading("plain", "output"), "good") for layer in range(3)]
MOMENTS = MomentsSpec(Site("attn_write", 0), Reading("plain", "input"), Reading("good", "output"), None, "good")
PLAN = EditPlan((Edit(Site("mlp_write", 0), bias=np.ones(2)),))


class Counting:
    """Every recording gives new numbers."""

    def __init__(self):
        self.calls = []

    def __call__(self, specs, plan_so_far=None, *, edited=CONTEXTS):
        self.edited = edited
        self.calls.append((list(specs), plan_so_far))
        number = float(len(self.calls))
        return ActivationStatistics(
            {spec: Rows(np.full((1, 2), number)) for spec in specs if isinstance(spec, RowsSpec)},
            {spec: Moments.of(np.ones((1, 2)), np.ones((1, 2))) for spec in specs if isinstance(spec, MomentsSpec)},
        )


@pytest.fixture
def counting():
    return Counting()


def test_each_spec_is_recorded_once(counting):
    capture = RememberingCapture(counting)
    first = capture([ROWS[0], MOMENTS])
    second = capture([ROWS[1], ROWS[0], ROWS[2], ROWS[1]], EditPlan(()))
    assert capture(ROWS).rows[ROWS[2]] is second.rows[ROWS[2]]
    assert counting.calls == [([ROWS[0], MOMENTS], None), ([ROWS[1], ROWS[2]], None)]
    assert second.rows[ROWS[0]] is first.rows[ROWS[0]]
    assert list(second.rows) == [ROWS[1], ROWS[0], ROWS[2]]
    assert not second.moments
    assert list(first.moments) == [MOMENTS]


def test_what_is_asked_for_once_is_made_once_a_key(counting):
    capture, made = RememberingCapture(counting), []

    def make():
        made.append(None)
        return [len(made)]

    first = capture.once(("a", MOMENTS), make)
    assert capture.once(("a", replace(MOMENTS)), make) is first
    assert capture.once(("b", MOMENTS), make) == [2]
    assert len(made) == 2


def test_with_edits_nothing_is_remembered(counting):
    capture = RememberingCapture(counting)
    plain = capture(ROWS[:1]).rows[ROWS[0]].values
    edited = [capture(ROWS[:1], PLAN).rows[ROWS[0]].values for _ in range(2)]
    assert [values[0, 0] for values in (plain, *edited)] == [1, 2, 3]
    assert capture(ROWS[:1]).rows[ROWS[0]].values is plain
    assert [plan for _, plan in counting.calls] == [None, PLAN, PLAN]
    capture(ROWS[:1], PLAN, edited=("plain",))
    assert counting.edited == ("plain",)


def test_token_rows_are_remembered_and_every_source_is_released():
    """What is mapped from files is let go of through the statistics that it came with."""
    released = []

    class Source(ActivationStatistics):
        def release(self):
            released.append(self)

    first, second = (replace(MOMENTS, site=Site("attn_write", layer)) for layer in range(2))
    sources = [
        Source({}, {}, {first: TokenRows(np.ones((1, 2), np.float32), np.ones((1, 2), np.float32), 1)}),
        Source({}, {second: Moments.of(np.ones((1, 2)), np.ones((1, 2)))}),
    ]
    answers = iter(sources)
    capture = RememberingCapture(lambda specs, plan_so_far=None: next(answers))
    capture([first])
    both = capture([second, first])
    assert both.sums_of(first) is sources[0].token_rows[first]
    assert both.sums_of(second) is sources[1].moments[second]
    both.release()
    assert released == [sources[1], sources[0]]
