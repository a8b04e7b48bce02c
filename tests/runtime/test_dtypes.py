"""The dtypes that the CPU provider is said to compute in, tried with graphs that do."""

from __future__ import annotations

import ml_dtypes  # gives numpy's astype the name bfloat16
import pytest

from alignez_bake.errors import BadInputError
from alignez_bake.runtime import generate, open_session
from alignez_bake.runtime.dtypes import check_dtype, supported_dtypes
from tests.runtime.graphs import TYPES, causal_model, reference_greedy, saved


@pytest.mark.parametrize("dtype", TYPES)
def test_a_graph_opens_where_its_dtype_is_supported(tmp_path, dtype):
    """What 16 bits change of the logits is not enough to decide the first token here."""
    assert ml_dtypes.bfloat16
    path = saved(causal_model(dtype=dtype), tmp_path)
    if dtype in supported_dtypes("cpu"):
        check_dtype("cpu", dtype)
        assert generate(open_session(path, ["cpu"]), [[3, 1, 4]], max_new_tokens=1) == [reference_greedy([3, 1, 4], 1)]
        return
    with pytest.raises(BadInputError, match=f"cpu provider does not compute in {dtype}: choose one of float32"):
        check_dtype("cpu", dtype)
    with pytest.raises(BadInputError, match="NOT_IMPLEMENTED"):
        open_session(path, ["cpu"])


@pytest.mark.parametrize("provider", ["cuda", "cuda:1", "tensorrt"])
def test_nothing_is_claimed_of_a_gpu(provider):
    assert supported_dtypes(provider) is None
    check_dtype(provider, "bfloat16")
