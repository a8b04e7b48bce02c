"""A search as parts of a report: every candidate, the chosen one against the budget, and why."""

from __future__ import annotations

from dataclasses import replace

from alignez_bake.report.html.from_tuning import with_tuning
from alignez_bake.report.html.page_contents import contents_of
from alignez_bake.report.html.report_data import Drift, MeasuredRate, ReportData
from alignez_bake.tuning.frontier import FrontierPoint, TuningResult
from alignez_bake.tuning.uncertainty import ClusteredMean

EMPTY = ReportData("nothing", "alignez-bake 0.1.0")


def point(name, value, kl, out=None):
    rate = None if value is None else ClusteredMean(value, value - 0.04, value + 0.04, 0.02)
    return FrontierPoint(name, "ridge", {}, rate, kl, 300, out)


TUNING = TuningResult(
    (
        point("base", 0.42, 0.0),
        point("gentle", 0.8, 0.05),
        point("worse", 0.6, 0.2, "its rate is far below the best"),
        point("strong", 0.84, 0.4, "its KL is beyond the budget"),
        point("broken", 0.1, None, "its KL is not finite"),
        point("nothing", None, None, "no direction was found"),
    ),
    "gentle",
    "gentle was chosen: nothing within the budget is better.",
    ClusteredMean(0.38, 0.32, 0.44, 0.03),
    0.1,
    60,
    {"helpful": -3.0},
)


def test_every_candidate_has_its_place():
    data = with_tuning(EMPTY, TUNING)
    assert [(one.name, one.chosen, one.on_front) for one in data.frontier] == [
        ("base", False, True),
        ("gentle", True, True),
        ("worse", False, False),
        ("strong", False, True),
        ("broken", False, False),
        ("nothing", False, False),
    ]
    rows = contents_of(data).candidates.rows
    assert rows[5] == ("nothing", "–", "–", "–", "", "no direction was found")
    assert rows[4][3] == "–"
    assert rows[1][-1] == ""


def test_the_chosen_one_stands_beside_the_base_and_the_budget():
    judged = MeasuredRate("aligned", "judge.py", 0.9, 0.88, 0.92)
    data = with_tuning(replace(EMPTY, rates=(judged,), notes=("a note",)), TUNING)
    assert data.rates == (
        judged,
        MeasuredRate("base", "the base itself", 0.42, 0.42 - 0.04, 0.42 + 0.04, 300),
        MeasuredRate("aligned", "the base itself", 0.8, 0.8 - 0.04, 0.8 + 0.04, 300),
    )
    assert data.drift == Drift(0.05, 0.1, "neutral texts")
    assert data.notes == ("a note", "gentle was chosen: nothing within the budget is better.")


def test_where_nothing_is_chosen_no_figure_is_made_up():
    nothing = replace(TUNING, chosen=None, reason="Nothing is better than the base.")
    data = with_tuning(EMPTY, nothing)
    assert data.rates == ()
    assert data.drift is None
    assert not any(one.chosen for one in data.frontier)
    assert data.notes == ("Nothing is better than the base.",)
