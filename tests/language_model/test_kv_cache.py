"""The cache goes by the name that the installed release gives it, so nothing is deprecated."""

from __future__ import annotations

import warnings

import pytest
import torch

from alignez_bake.language_model.kv_cache import cache_name
from tests.tiny_models import COMBINATIONS


@pytest.mark.parametrize(("model_type", "bias"), COMBINATIONS)
def test_the_name_carries_the_cache_there_and_back(model_type, bias, tiny_model):
    model = tiny_model(model_type, bias=bias)
    ids = torch.arange(3, 11)[None]
    name = cache_name(model)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        whole = model(input_ids=ids).logits[:, -1]
        first = model(input_ids=ids[:, :-1], use_cache=True)
        last = model(input_ids=ids[:, -1:], use_cache=True, **{name: first[name]}).logits[:, -1]
        alone = model(input_ids=ids[:, -1:]).logits[:, -1]
    assert torch.allclose(last, whole, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(alone, whole, rtol=1e-2, atol=1e-2)


def test_a_model_without_a_cache_is_told():
    with pytest.raises(ValueError, match="no argument cache or past_key_values"):
        cache_name(torch.nn.Linear(1, 1))
