import json

import pytest

from alignez_bake.errors import BadInputError
from alignez_bake.tuning.frontier import FrontierPoint, TuningResult, pareto_front
from alignez_bake.tuning.uncertainty import ClusteredMean


def point(name, rate, kl, out=None):
    estimate = None if rate is None else ClusteredMean(rate, rate - 0.02, rate + 0.02, 0.01)
    return FrontierPoint(name, "ridge", {"strength": 2.0, "layers": [0, 1]}, estimate, kl, 300, out)


POINTS = (
    point("base", 0.4, 0.0),
    point("strong", 0.9, 0.05),
    point("dominated", 0.6, 0.02, "weak"),
    point("gentle", 0.7, 0.01),
    point("twin of gentle", 0.7, 0.01),
    point("same rate, more drift", 0.9, 0.06),
    point("same drift, lower rate", 0.3, 0.0),
    point("no drift measured", 0.95, None, "out"),
    point("no edits", None, None, "out"),
)
RESULT = TuningResult(POINTS, "gentle", "because", ClusteredMean(0.3, 0.25, 0.35, 0.02), 0.05, 40, {"helpful": -1.5})


def test_the_front_is_what_nothing_beats():
    assert [point.candidate for point in pareto_front(POINTS)] == ["base", "gentle", "twin of gentle", "strong"]
    assert pareto_front([]) == ()


def test_json_there_and_back():
    value = json.loads(json.dumps(RESULT.to_json(), allow_nan=False))
    assert TuningResult.from_json(value, "the file") == RESULT
    assert value["pareto_front"] == ["base", "gentle", "twin of gentle", "strong"]
    assert RESULT.base.candidate == "base"
    assert RESULT.chosen_point is POINTS[3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "of format 2: this version reads 1"),
        ({"chosen": "unknown"}, "hold the chosen one"),
        ({"chosen": 3}, "3 is no str"),
        ({"points": []}, "must begin with the base"),
        ({"points": [{"candidate": "base"}]}, "'method'"),
        ({"kl_budget": "0.1"}, "'0.1' is no finite number"),
        ({"queries": True}, "True is no int"),
        ({"floors": [1]}, "no tuning result"),
        ({"gain": {"value": 1.0, "low": 0.0, "high": 2.0}}, "standard_error"),
        ({"reason": None}, "None is no str"),
    ],
)
def test_a_file_of_something_else(change, message):
    with pytest.raises(BadInputError, match=message):
        TuningResult.from_json(RESULT.to_json() | change, "the file")
