import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from alignez_bake.errors import BadInputError
from alignez_bake.evaluation.rates import gap_closed, rate


@given(st.integers(1, 500).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_the_interval_is_wilsons(counts):
    successes, total = counts
    made = rate(successes, total)
    expected = binomtest(successes, total).proportion_ci(method="wilson")
    assert (made.low, made.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= made.low <= made.value <= made.high <= 1
    assert made.as_json() == {
        "value": successes / total,
        "successes": successes,
        "total": total,
        "low": made.low,
        "high": made.high,
    }


@pytest.mark.parametrize("counts", [(0, 0), (2, 1), (-1, 3)])
def test_no_rates(counts):
    with pytest.raises(BadInputError, match="are no rate"):
        rate(*counts)


def test_gap_closed():
    assert gap_closed(0.5, 0.8, 0.9) == pytest.approx(75)
    assert gap_closed(0.5, 0.4, 0.9) == pytest.approx(-25)
    assert gap_closed(0.5, 1.0, 0.9) == pytest.approx(125)
    assert gap_closed(0.5, 0.8, 0.5) is None
