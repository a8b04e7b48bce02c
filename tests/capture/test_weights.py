from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.spatial.distance
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignez_bake.capture.weights import disagreement_weights, jensen_shannon
from alignez_bake.errors import BadInputError


@settings(deadline=None)
@given(st.integers(0, 2**32), st.floats(0.1, 20), st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
def test_divergence_is_that_of_scipy(seed: int, scale: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    good, bad = (scale * torch.randn(300, 11, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    found = jensen_shannon(good, bad)
    p, q = (x.double().softmax(-1).numpy() for x in (good, bad))
    expected = np.square(scipy.spatial.distance.jensenshannon(p, q, axis=1))
    assert found.shape == (300,)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def test_divergence_lies_between_zero_and_log_two() -> None:
    certain = torch.eye(3) * 1e4
    np.testing.assert_allclose(jensen_shannon(certain, certain.roll(1, 0)), math.log(2), atol=1e-6)
    same = torch.randn(50, 1000, generator=torch.Generator().manual_seed(0)) * 10
    found = jensen_shannon(same, same)
    assert (found >= 0).all()
    assert found.max() < 1e-6


@settings(deadline=None)
@given(st.lists(st.lists(st.floats(0, math.log(2)), min_size=1, max_size=6), min_size=1, max_size=6))
def test_weights_are_relative_to_the_ninetieth_percentile(divergences: list[list[float]]) -> None:
    arrays = [np.array(values) for values in divergences]
    everything = np.concatenate(arrays)
    if everything.max() <= 1e-6:
        return
    weights = disagreement_weights(arrays)
    assert [w.shape for w in weights] == [a.shape for a in arrays]
    full = max(np.percentile(everything, 90), 1e-6)
    for array, weight in zip(arrays, weights, strict=True):
        np.testing.assert_allclose(weight, [min(1.0, value / full) for value in array])
    assert np.concatenate(weights)[everything.argmax()] == 1.0


def test_where_nine_in_ten_tokens_agree_the_others_count_fully() -> None:
    (weights,) = disagreement_weights([np.array([0.0] * 30 + [0.5])])
    np.testing.assert_array_equal(weights, [0.0] * 30 + [1.0])


def test_rounding_is_no_disagreement() -> None:
    with pytest.raises(BadInputError, match="the model ignores them"):
        disagreement_weights([np.array([0.0, 1e-7]), np.array([3e-8])])
    with pytest.raises(BadInputError, match="not finite"):
        disagreement_weights([np.array([0.1, np.nan])])
