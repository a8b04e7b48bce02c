import pytest

from alignez_bake.feasibility.pair_quality import judge_pairs, pair_quality
from alignez_bake.preference_pairs.filters import Answer, FilterReport, Pair

PAIRS = [
    Pair({"query": f"q{number}"}, "helpful", Answer(good, ""), Answer(bad, ""))
    for number, (good, bad) in enumerate(
        [(" Yes, so.", " No."), (" Of course it is.", " No."), (" Yes, so.", " Never.")]
    )
]


def test_figures_and_signs(tiny_contrast):
    judged = judge_pairs(tiny_contrast, PAIRS)
    found = pair_quality(PAIRS, FilterReport(3, 1, 2, 4), judged, own=True, seed=0)
    assert found.shares == {"kept": 0.5, "empty": pytest.approx(1 / 6), "equal": pytest.approx(1 / 3)}
    assert found.distinct == {"good": pytest.approx(2 / 3), "bad": pytest.approx(2 / 3)}
    assert found.judged == 3
    margins = sorted(good - bad for good, bad in zip(*judged.rewards, strict=True))
    assert found.margin == margins[1] != 0
    assert found.told_apart.successes == sum(margin > 0 for margin in margins)
    assert found.contrast.value == pytest.approx(
        (sum(reward > 0 for reward in judged.rewards[0]) - sum(reward > 0 for reward in judged.rewards[1])) / 3
    )
    # Rewards are those of the good persona, whichever is wanted.
    turned = judge_pairs(tiny_contrast._replace(wanted="bad"), PAIRS)
    for one, other in zip(judged.rewards, turned.rewards, strict=True):
        assert other == pytest.approx(one, abs=1e-4)
    assert found.to_json()["kept"] == 3
