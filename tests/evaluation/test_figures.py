import pytest

from alignez_bake.errors import BadInputError
from alignez_bake.evaluation.figures import figures
from alignez_bake.evaluation.protocol import AnswerSet, Judgement, judgements_by_score, pairs_of

MODELS = ("base", "ours", "tuned")
OURS, BOTH, TUNED = pairs_of(MODELS)


def scored(*rows):
    """Judgements from scores of base, ours, tuned."""
    sets = [AnswerSet({"query": "q"}, dict.fromkeys(MODELS[: len(row)], "")) for row in rows]
    return judgements_by_score(sets, [dict(zip(MODELS, row, strict=False)) for row in rows])


def compared(ours, both, tuned, **more):
    return Judgement({}, {OURS: ours, BOTH: both, TUNED: tuned}, **more)


def test_pairs():
    assert pairs_of(MODELS) == (("ours", "base"), ("ours", "tuned"), ("tuned", "base"))
    assert pairs_of(("base", "ours")) == (("ours", "base"),)


def test_scores_become_rates_wins_and_a_gap():
    judgements = scored((-1, 1, 1), (-1, 0.5, 1), (-1, -1, 1), (0.5, 1, 1)) * 10
    found = figures(judgements, MODELS, samples=2, good_above=0.0, seed=0)
    assert {name: entry.good_rate.value for name, entry in found.models.items()} == {
        "base": 0.25, "ours": 0.75, "tuned": 1.0,
    }  # fmt: skip
    assert found.models["ours"].mean_score.value == pytest.approx(0.375)
    ours = found.pairs[OURS]
    assert (ours.wins, ours.ties, ours.losses, ours.unjudged) == (30, 10, 0, 0)
    assert ours.net_win.value == pytest.approx(75)
    assert found.pairs[BOTH].net_win.value == pytest.approx(-50)
    assert found.gap.value == pytest.approx(100 * 0.5 / 0.75)
    assert found.gap_of == "good_rate"
    assert found.as_json()["pairs"]["ours against base"]["wins"] == 30


def test_the_threshold_is_the_judges_own():
    judgements = scored((1.0, 2.0), (1.5, 3.0))
    found = figures(judgements, MODELS[:2], samples=1, good_above=1.5, seed=0)
    assert found.models["base"].good_rate.value == 0
    assert found.models["ours"].good_rate.value == 1
    assert found.gap is None


def test_answers_are_grouped_by_query():
    """All of one query are good, all of the other bad: with samples and queries mixed up the interval would shrink."""
    judgements = [entry for row in ((1, 1), (-1, -1)) for entry in scored(row) * 50]
    found = figures(judgements, MODELS[:2], samples=50, good_above=0.0, seed=0)
    assert (found.models["base"].good_rate.low, found.models["base"].good_rate.high) == (0, 1)


def test_a_judge_that_only_compares():
    judgements = [
        compared(1, 0, 1),
        compared(1, -1, 1),
        compared(0, None, 1),
        compared(-1, -1, None, unreadable=("x",)),
    ]
    found = figures(judgements * 10, MODELS, samples=1, good_above=None, seed=0)
    assert found.models == {}
    ours, tuned = found.pairs[OURS], found.pairs[TUNED]
    assert (ours.wins, ours.ties, ours.losses, ours.unjudged) == (20, 10, 10, 0)
    assert (tuned.wins, tuned.unjudged) == (30, 10)
    assert tuned.net_win.value == 100  # of what was judged
    assert found.gap_of == "net_win"
    assert found.gap.value == pytest.approx(25)
    assert found.as_json()["unreadable_replies"] == 10
    assert found.as_json()["unreadable_examples"] == ["x"]


def test_a_pair_without_any_verdict_has_no_net_win():
    judgements = [compared(1, None, 1, order_dependent=2, cut=1)] * 3
    found = figures(judgements, MODELS, samples=1, good_above=None, seed=0)
    assert found.pairs[BOTH].net_win is None
    assert found.pairs[BOTH].unjudged == 3
    assert (found.order_dependent, found.cut) == (6, 3)


def test_no_verdict_at_all_is_an_error():
    judgements = [compared(None, None, None, unreadable=("'hm'", "'ha'"))] * 3
    with pytest.raises(BadInputError, match="not one of 6 replies of the judge is a letter, the first is 'hm'"):
        figures(judgements, MODELS, samples=1, good_above=None, seed=0)
