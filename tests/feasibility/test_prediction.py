"""Planted figures: which verdict they give, and which figures the advice names."""

from dataclasses import replace

import pytest

from alignez_bake.evaluation.rates import rate
from alignez_bake.feasibility.layers import LayerFigures, LayerReport
from alignez_bake.feasibility.obedience import Obedience, UpperBound
from alignez_bake.feasibility.pair_quality import Lengths, PairQuality
from alignez_bake.feasibility.prediction import predict
from alignez_bake.feasibility.separability import Separability
from alignez_bake.preference_pairs.filters import FilterReport
from alignez_bake.tuning.uncertainty import ClusteredMean


def around(value, half):
    return ClusteredMean(value, value - half, value + half, half / 1.96)


OBEYS = Obedience(
    wanted=rate(92, 100),
    other=rate(90, 100),
    plain=rate(48, 100),
    contrast=around(0.82, 0.1),
    room=around(0.44, 0.13),
    gain=around(0.5, 0.12),
    reach=UpperBound(0.45, 0.6),
    reward=(2.0, -2.0),
    divergence=0.04,
    variation=0.1,
    empty=0,
    queries=100,
    written_for="personas",
)
PAIRS = PairQuality(
    filters=FilterReport(95, 0, 5, 0),
    distinct={"good": 0.9, "bad": 0.8},
    judged=95,
    told_apart=rate(88, 95),
    contrast=around(0.8, 0.1),
    own=True,
    margin=4.0,
    lengths=Lengths(16, 10),
)
SPEAKS = (LayerReport(4, {"last": LayerFigures(Separability(rate(46, 50), 1e-9), 0.9, 0.3)}),)
SILENT = (LayerReport(4, {"last": LayerFigures(Separability(rate(28, 50), 0.24), 0.9, 0.3)}),)


def test_a_base_that_obeys_and_has_room():
    found = predict(OBEYS, PAIRS, SPEAKS)
    assert (found.verdict, found.gain, found.advice) == ("likely", OBEYS.gain, ())
    assert found.sentence == (
        "likely helps; expected gain +50 points of good answers, standard error 6, 95 % interval +38 to +62"
    )
    assert "92 % of the answers under the good persona" in found.reasons[0]
    assert "gain +50 points; the persona imitated, +44" in found.reasons[1]
    assert "layer 4 (last) tells 46 of 50" in found.reasons[-1]
    assert predict(OBEYS, PAIRS, ()).verdict == "likely"


@pytest.mark.parametrize(
    ("obedience", "pairs", "layers", "verdict", "advice"),
    [
        pytest.param(
            {"contrast": around(0.04, 0.1), "gain": around(0.05, 0.1)},
            {},
            SPEAKS,
            "unlikely",
            "52 % of the answers under them are judged to be the right one's, chance is 50 %; use a larger",
            id="ignores its personas",
        ),
        pytest.param(
            {"gain": around(0.01, 0.05), "plain": rate(91, 100)},
            {},
            SPEAKS,
            "unlikely",
            "without being asked, 91 % of the answers are judged to be the good persona's already, 92 % when",
            id="nothing left to do",
        ),
        pytest.param(
            {"gain": around(0.2, 0.3), "queries": 16},
            {},
            SPEAKS,
            "unclear",
            "answers to 16 queries leave the gain within -10 to +50 points: give more, about 100",
            id="few queries",
        ),
        pytest.param(
            {"room": around(0.08, 0.05), "reach": UpperBound(0.05, 0.15), "gain": around(0.24, 0.1)},
            {},
            SPEAKS,
            "likely",
            "",
            id="imitation would not be seen, but what sets the persona apart is",
        ),
        pytest.param({"contrast": around(0.1, 0.06)}, {}, SPEAKS, "unlikely", "55 % of the answers", id="too alike"),
        pytest.param(
            {},
            {"contrast": around(0.02, 0.1), "told_apart": rate(60, 95)},
            SPEAKS,
            "unlikely",
            "51 % of the answers of 95 pairs are judged to be their own persona's, chance is 50 %; use a larger",
            id="does not follow personas in other words",
        ),
        pytest.param(
            {},
            {"contrast": around(0.02, 0.1), "told_apart": rate(50, 95), "own": False},
            SPEAKS,
            "unclear",
            "the pairs do not show the personas: 51 % of the answers of 95 pairs",
            id="pairs of somebody who guessed",
        ),
        pytest.param(
            {},
            {"contrast": around(-0.6, 0.1), "told_apart": rate(10, 95), "own": False},
            SPEAKS,
            "unlikely",
            "in 89 % of the pairs the bad answer is the likelier one",
            id="sides swapped",
        ),
        pytest.param({}, {}, SILENT, "unclear", "the best one (4) gets 28 of 50, p = 0.24", id="silent layers"),
        pytest.param(
            {},
            {"filters": FilterReport(20, 5, 75, 0)},
            SPEAKS,
            "likely",
            "80 % of the pairs were dropped",
            id="filtered",
        ),
        pytest.param(
            {},
            {"distinct": {"good": 0.9, "bad": 0.1}},
            SPEAKS,
            "likely",
            "only 10 % of the bad answers are distinct",
            id="repeats itself",
        ),
    ],
)
def test_verdicts_and_advice(obedience, pairs, layers, verdict, advice):
    found = predict(replace(OBEYS, **obedience), replace(PAIRS, **pairs), layers)
    assert found.verdict == verdict
    assert advice in " | ".join(found.advice)


def test_the_best_of_many_layers_is_lucky():
    lucky = Separability(rate(33, 50), 0.016)
    one = (LayerReport(0, {"last": LayerFigures(lucky, 0.9, 0.3)}),)
    many = tuple(replace(one[0], layer=layer) for layer in range(40))
    assert predict(OBEYS, PAIRS, one).verdict == "likely"
    assert predict(OBEYS, PAIRS, many).verdict == "unclear"
