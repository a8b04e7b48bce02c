import pytest

from alignez_bake.errors import BadInputError
from alignez_bake.preference_pairs.filters import Answer, FilterReport, Pair, match_pairs
from alignez_bake.preference_pairs.records import PairRecord


def record(query, side, answer, objective="helpful", **more):
    return PairRecord({"query": query, **more}, objective, side, answer, characteristic=f"be {side}")


def test_matching_and_dropping():
    records = [
        record("kept", "bad", " no", x=1),
        record("empty", "good", " \n"),
        record("empty", "bad", "no"),
        record("equal", "good", " same"),
        record("equal", "bad", "same "),
        record("alone", "good", "yes"),
        record("kept", "good", " yes", x=1),
        record("other", "good", "yes", objective="humor"),
        record("other", "bad", "no", objective="humor"),
    ]
    pairs, report = match_pairs(records, "helpful", min_pairs=1)
    assert pairs == [Pair({"query": "kept", "x": 1}, "helpful", Answer(" yes", "be good"), Answer(" no", "be bad"))]
    assert report == FilterReport(kept=1, empty=1, equal=1, without_partner=1)
    assert report.as_json() == {"kept": 1, "empty": 1, "equal": 1, "without_partner": 1}


def test_several_answers_are_matched_in_order():
    records = [record("a", "good", "1"), record("a", "good", "2"), record("a", "bad", "3"), record("a", "good", "4")]
    records.append(record("a", "bad", "5"))
    pairs, report = match_pairs(records, "helpful", min_pairs=1)
    assert [(pair.good.text, pair.bad.text) for pair in pairs] == [("1", "3"), ("2", "5")]
    assert report.without_partner == 1


@pytest.mark.parametrize(("count", "enough"), [(7, False), (8, True)])
def test_too_few(count, enough):
    records = [record(str(n), side, side) for n in range(count) for side in ("good", "bad")]
    if enough:
        assert len(match_pairs(records, "helpful")[0]) == count
    else:
        with pytest.raises(BadInputError, match=r"'helpful': 7 pairs kept; dropped: 0 .* at least 8 are needed"):
            match_pairs(records, "helpful")
