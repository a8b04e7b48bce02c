from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignez_bake.capture.spec import MomentsSpec, Reading, RowsSpec
from alignez_bake.capture.statistics import ActivationStatistics, Moments, Rows
from alignez_bake.errors import BadInputError
from alignez_bake.site import Site


@settings(deadline=None)
@given(st.integers(0, 2**32), st.lists(st.integers(0, 30), max_size=5))
def test_moments_of_parts_add_up_to_those_of_the_whole(seed: int, cuts: list[int]) -> None:
    rng = np.random.default_rng(seed)
    z, d = rng.normal(size=(30, 5)) * 10.0 ** rng.integers(-3, 3), rng.normal(size=(30, 3))
    edges = [0, *sorted(cuts), 30]
    parts = [Moments.of(z[a:b], d[a:b]) for a, b in pairwise(edges)]
    total = parts[0]
    for part in parts[1:]:
        total = total.merged_with(part)
    whole = Moments.of(z, d)
    assert total.count == whole.count == 30
    for name in ("ztz", "ztd", "z_sum"):
        a, b = getattr(total, name), getattr(whole, name)
        assert np.linalg.norm(a - b) <= 1e-13 * np.linalg.norm(np.abs(z).sum(axis=0)) * max(
            1.0, np.abs(z).max(), np.abs(d).max()
        )
    assert total.d_square == pytest.approx(whole.d_square, rel=1e-13)


@settings(deadline=None)
@given(st.integers(0, 2**32))
def test_merging_is_associative_and_rows_keep_their_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b, c = (Rows(rng.normal(size=(int(rng.integers(0, 4)), 3))) for _ in range(3))
    left, right = a.merged_with(b).merged_with(c), a.merged_with(b.merged_with(c))
    np.testing.assert_array_equal(left.values, right.values)
    np.testing.assert_array_equal(left.values, np.concatenate([a.values, b.values, c.values]))
    assert left.count == a.count + b.count + c.count


def test_the_fields_are_what_they_say() -> None:
    rng = np.random.default_rng(0)
    z, d = rng.normal(size=(9, 4)), rng.normal(size=(9, 2))
    moments = Moments.of(z, d)
    np.testing.assert_allclose(moments.ztz, sum(np.outer(row, row) for row in z))
    np.testing.assert_allclose(moments.ztd, sum(np.outer(a, b) for a, b in zip(z, d, strict=True)))
    np.testing.assert_allclose(moments.z_sum, sum(z))
    assert moments.d_square == pytest.approx(sum(row @ row for row in d))
    assert (moments.d_in, moments.d_out, moments.count) == (4, 2, 9)


def test_what_does_not_fit_together_is_refused() -> None:
    one, other = Moments.of(np.ones((2, 3)), np.ones((2, 2))), Moments.of(np.ones((2, 3)), np.ones((2, 4)))
    with pytest.raises(BadInputError, match="cannot be merged"):
        one.merged_with(other)
    with pytest.raises(BadInputError, match="cannot be merged"):
        Rows(np.ones((2, 3))).merged_with(Rows(np.ones((2, 4))))
    spec = RowsSpec(Site("mlp_write", 0), Reading("plain", "output"), "good")
    with pytest.raises(BadInputError, match="different specs"):
        ActivationStatistics({spec: Rows(np.ones((1, 2)))}, {}).merged_with(ActivationStatistics({}, {}))


def test_specs_name_their_statistics() -> None:
    spec = RowsSpec(Site("mlp_write", 0), Reading("plain", "output"), "good")
    same = RowsSpec(Site("mlp_write", 0), Reading("plain", "output"), "good", "last")
    assert spec == same
    assert len({spec, same}) == 1
    assert RowsSpec(Site("mlp_write", 0), Reading("plain", "output"), "bad") != spec


def test_specs_refuse_what_does_not_exist() -> None:
    with pytest.raises(BadInputError, match="'residual' has no input"):
        RowsSpec(Site("residual", 0), Reading("plain", "input"), "good")
    with pytest.raises(BadInputError, match="tokens 'first' is unknown"):
        RowsSpec(Site("mlp_write", 0), Reading("plain", "output"), "good", "first")  # type: ignore[arg-type]
    output = Reading("good", "output")
    with pytest.raises(BadInputError, match="answer_mean"):
        MomentsSpec(Site("mlp_write", 0), output, output, None, "good", "answer_mean", "disagreement")
