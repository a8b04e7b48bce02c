import json
import math
from dataclasses import replace

import numpy as np
import pytest

from alignez_bake.edit_plan import EditPlan
from alignez_bake.errors import BadInputError
from alignez_bake.tuning import uncertainty
from alignez_bake.tuning.frontier import TuningResult
from alignez_bake.tuning.search import ROUNDS, SearchSettings
from tests.tuning.planted import LUCK, World


def of(result, name):
    return next(point for point in result.points if point.candidate == name)


def test_the_best_of_many_is_found_and_nothing_is_sampled_twice():
    rates = {f"rate {rate:.2f}": (rate, 0.01) for rate in np.linspace(0.3, 0.9, 13)}
    world = World(0.4, rates)
    result = world.search()
    assert result.chosen == "rate 0.90"
    assert result.chosen_point.rate.value == np.mean(LUCK[:300] < 0.9)
    assert result.gain.value == pytest.approx(np.mean(LUCK[:300] < 0.9) - np.mean(LUCK[:300] < 0.4))
    assert result.gain.low > 0.3
    counts = sorted(point.answers for point in result.points[1:])
    assert counts == [32] * 6 + [96] * 3 + [300] * 4
    for asked in world.asked.values():
        assert asked == list(range(len(asked)))
    assert len(world.asked[0.0]) == 300
    assert sorted(world.measured) == [7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0]
    assert result.base.rate.value == np.mean(LUCK[:300] < 0.4)
    assert (result.base.candidate, result.base.kl, result.base.answers) == ("base", 0.0, 300)
    out = of(result, "rate 0.30").out
    assert out == f"its rate of {np.mean(LUCK[:32] < 0.3):.3f} after 32 answers is not among the best 7"
    assert "after 96 answers is not among the best 4" in of(result, "rate 0.70").out


def test_the_gentlest_within_one_standard_error_is_chosen():
    world = World(0.4, {"far": (0.6, 0.001), "near": (0.88, 0.01), "best": (0.9, 0.05)})
    world.luck[2.0] = np.random.default_rng(3).random(1000)
    result = world.search()
    assert result.chosen == "near"
    assert result.chosen_point.rate.value < of(result, "best").rate.value
    assert "the 2 within one standard error of the best (best, " in result.reason
    assert "is the gentlest, with a KL of 0.0100" in result.reason
    assert (
        of(result, "far").out == f"its rate of {np.mean(LUCK[:32] < 0.6):.3f} after 32 answers is not among the best 2"
    )


@pytest.mark.parametrize(("drift", "chosen"), [(0.019, "best"), (0.021, "near")])
def test_drifts_within_a_tenth_of_the_budget_are_equal_and_then_the_better_rated_is_chosen(drift, chosen):
    world = World(0.4, {"near": (0.88, 0.01), "best": (0.9, drift)})
    world.luck[1.0] = np.random.default_rng(3).random(1000)
    result = world.search(kl_budget=0.1)
    assert of(result, "near").rate.value < of(result, "best").rate.value
    assert result.chosen == chosen
    said = {"best": "is the best of those that are about as gentle as any", "near": "is the gentlest"}
    assert said[chosen] in result.reason


def test_the_standard_error_is_of_paired_differences():
    """On their own, rates of 0.885 and 0.9 are within one standard error; on the same luck they are not."""
    result = World(0.4, {"near": (0.885, 0.01), "best": (0.9, 0.05)}).search(rounds=(32, 1000))
    assert of(result, "near").rate.high > of(result, "best").rate.value
    assert result.chosen == "best"


def test_of_equal_rates_the_gentler_stays():
    weak = {f"weak {number}": (0.3, 0.001) for number in range(8)}
    equal = {f"equal {kl}": (0.9, kl) for kl in (0.04, 0.03, 0.02, 0.01)}
    result = World(0.2, weak | equal).search()
    assert "is shared by gentler ones among the best 3" in of(result, "equal 0.04").out
    assert result.chosen == "equal 0.01"


def test_what_drifts_too_far_is_out_and_takes_no_place():
    world = World(
        0.4,
        {
            "gentle": (0.7, 0.02),
            "wild": (0.99, 0.2),
            "broken": (0.98, math.nan),
            "wilder": (0.97, 3.0),
            "weak": (0.45, 0.001),
        },
    )
    result = world.search()
    assert result.chosen == "gentle"
    assert of(result, "wild").out == "it moves neutral texts by 0.2000 nats per token, above the budget of 0.1"
    assert of(result, "broken").out == "its predictions on neutral texts are not finite"
    assert (of(result, "broken").kl, of(result, "wild").kl) == (None, 0.2)
    assert [of(result, name).answers for name in ("wild", "broken", "wilder")] == [32] * 3
    assert of(result, "weak").answers == 300
    json.dumps(result.to_json(), allow_nan=False)


def test_a_result_that_beats_nothing_gives_none():
    world = World(0.6, {"same": (0.6, 0.001), "worse": (0.5, 0.01), "a little better": (0.605, 0.01)})
    result = world.search()
    assert result.chosen is None
    assert result.chosen_point is None
    assert result.gain.low <= 0
    assert result.reason.startswith("the best candidate, a little better, is judged good at ")
    assert result.reason.endswith("is not above 0")


def test_a_gentle_candidate_that_is_not_surely_better_does_not_hide_one_that_is():
    world = World(0.5, {"gentle": (0.52, 0.001), "strong": (0.55, 0.05)})
    world.luck[1.0] = np.random.default_rng(25).random(1000)
    result = world.search()
    gentle = world.luck[1.0][:300] < 0.52
    base, strong = LUCK[:300] < 0.5, LUCK[:300] < 0.55
    assert abs(np.mean(strong) - np.mean(gentle)) < 0.03
    assert abs(np.mean(gentle) - np.mean(base)) < 0.06
    assert "of the 1 within one standard error of the best" not in result.reason
    assert result.chosen == "strong"


def test_candidates_without_edits_are_reported():
    result = World(0.4, {"none": "site x: nothing to fit", "good": (0.9, 0.01)}).search()
    assert result.chosen == "good"
    none = of(result, "none")
    assert (none.out, none.rate, none.kl, none.answers) == ("site x: nothing to fit", None, None, 0)
    assert TuningResult.from_json(json.loads(json.dumps(result.to_json())), "the file") == result


@pytest.mark.parametrize("planted", ["nothing to fit", (0.9, 5.0)])
def test_no_candidate_that_can_be_used(planted):
    result = World(0.4, {"only": planted}).search()
    assert (result.chosen, result.gain) == (None, None)
    assert result.reason == "no candidate gave edits within the KL budget of 0.1"
    assert result.base.answers == 300


def test_one_round_measures_every_drift():
    world = World(0.2, {f"{number}": (0.5 + number / 20, 0.01 * number) for number in range(1, 8)})
    result = world.search(rounds=(300,), kl_budget=0.055)
    assert len(world.measured) == 7
    assert result.chosen == "5"


class PowerCutError(Exception):
    pass


@pytest.mark.parametrize("after", [0, 1, 4, 6, 9, 12])
def test_an_interrupted_search_goes_on_to_the_same_bytes(tmp_path, after):
    candidates = {f"{number}": (0.5 + number / 20, 0.01 * number) for number in range(1, 6)}
    expected = World(0.4, candidates).search(tmp_path / "whole")
    world = World(0.4, candidates)
    calls = iter(range(after))

    def interrupting(real):
        def measure(*arguments):
            if next(calls, None) is None:
                raise PowerCutError
            return real(*arguments)

        return measure

    world.answer_values, world.drift = interrupting(world.answer_values), interrupting(world.drift)
    with pytest.raises(PowerCutError):
        world.search(tmp_path / "cut")
    assert (tmp_path / "cut").read_bytes() != (tmp_path / "whole").read_bytes()
    again = World(0.4, candidates)
    assert again.search(tmp_path / "cut") == expected
    assert (tmp_path / "cut").read_bytes() == (tmp_path / "whole").read_bytes()
    measured_again = len(again.measured) + sum(1 for asked in again.asked.values() for k in asked if k in {0, 32, 96})
    assert measured_again == (tmp_path / "whole").read_bytes().count(b"\n") - 1 - after


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kl_budget": 0.0}, "KL budget 0.0 must be a finite number of nats per token above 0"),
        ({"kl_budget": math.nan}, "KL budget nan"),
        ({"queries": 1}, "1 held-out queries are too few"),
        ({"rounds": ()}, "must grow"),
        ({"rounds": (96, 32)}, "must grow"),
        ({"rounds": (32, 32)}, "must grow"),
        ({"rounds": (1, 32)}, "at least 2"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(BadInputError, match=message):
        SearchSettings(**({"queries": 10, "kl_budget": 0.1, "seed": 0} | settings))


def test_many_candidates_that_do_nothing_are_hardly_ever_chosen(monkeypatch):
    """Each has luck of its own; 95 % of searches choose none, and not 84 % as with intervals for one."""
    monkeypatch.setattr(uncertainty, "_RESAMPLES", 100)
    chosen = 0
    for search in range(60):
        world = World(0.5, {f"{number}": (0.5, 0.01 * number) for number in range(1, 13)})
        for number in range(13):
            world.luck[float(number)] = np.random.default_rng((search, number)).random(300)
        chosen += world.search(kl_budget=1.0, rounds=ROUNDS).chosen is not None
    assert chosen <= 6


def beside(world, planted):
    """The candidates of another world as finer ones, and of whom they were asked for."""
    other = World(0.4, planted)
    asked = []
    for number, each in enumerate(other.planned, start=1):
        if each.plan is not None:
            key = 100.0 + number
            edit = replace(each.plan.edits[0], strength=key)
            other.planned[number - 1] = each._replace(plan=EditPlan((edit,)))
            world.rates[key], world.drifts[key], world.asked[key] = *planted[each.candidate.name], []

    def found(best):
        asked.append(best.name)
        return other.planned

    return found, asked


def test_what_is_finer_is_tried_beside_the_best_of_the_first_round():
    world = World(0.4, {"good": (0.8, 0.02), "weak": (0.5, 0.01), "wild": (0.99, 3.0)})
    finer, asked = beside(world, {"finer": (0.95, 0.03), "nothing": "no edit", "too far": (0.99, 0.3)})
    result = world.search(beside=finer)
    assert asked == ["good"]
    assert result.chosen == "finer"
    assert [point.candidate for point in result.points] == [
        "base",
        "good",
        "weak",
        "wild",
        "finer",
        "nothing",
        "too far",
    ]
    assert of(result, "nothing").out == "no edit"
    assert "above the budget" in of(result, "too far").out
    assert (of(result, "too far").answers, of(result, "finer").answers) == (32, 300)
    assert world.asked[101.0] == list(range(300))


def test_where_all_are_above_the_budget_it_is_looked_beside_the_gentlest():
    world = World(0.4, {"far": (0.9, 0.5), "farther": (0.95, 0.9), "broken": (0.97, math.nan)})
    finer, asked = beside(world, {"near": (0.8, 0.05)})
    assert world.search(beside=finer).chosen == "near"
    assert asked == ["far"]


def test_an_interval_is_widened_for_what_is_finer_too():
    world = World(0.4, {"good": (0.8, 0.02)})
    finer, _ = beside(world, {f"finer {number}": (0.5, 0.01) for number in range(9)})
    alone, among = World(0.4, {"good": (0.8, 0.02)}).search(), world.search(beside=finer)
    assert alone.chosen == among.chosen == "good"
    assert among.gain.low < alone.gain.low


def test_an_interrupted_search_with_finer_ones_goes_on(tmp_path):
    planted = {"good": (0.8, 0.02), "weak": (0.5, 0.01)}
    more = {"finer": (0.95, 0.03)}
    whole = World(0.4, planted)
    expected = whole.search(tmp_path / "whole", beside=beside(whole, more)[0])
    lines = (tmp_path / "whole").read_bytes().splitlines(keepends=True)
    for cut in range(1, len(lines)):
        (tmp_path / "cut").write_bytes(b"".join(lines[:cut]))
        again = World(0.4, planted)
        assert again.search(tmp_path / "cut", beside=beside(again, more)[0]) == expected
        assert (tmp_path / "cut").read_bytes() == (tmp_path / "whole").read_bytes()
