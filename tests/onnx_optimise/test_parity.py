"""A graph with fused operators gives what the plain one gives: padded rows, several tokens behind a cache, decoding."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from tests.onnx_export.graphs import TOLERANCE, greedy, next_batch, operators, prompts
from tests.running import relative
from tests.tiny_models import MODEL_TYPES, VOCABULARY

TOKENS = 64
DEFAULT = [("llama", "inserted", 23), ("gemma2", "base", 20), ("gpt2", "base", 23)]
CASES = [
    *DEFAULT,
    *(
        pytest.param(model_type, "base", opset, marks=pytest.mark.sweep)
        for model_type in MODEL_TYPES
        for opset in (23, 20)
        if (model_type, "base", opset) not in DEFAULT
    ),
]
cases = pytest.mark.parametrize(("model_type", "edits", "opset"), CASES)
both_widths = pytest.mark.parametrize("rows", [1, 4])
WITHOUT_ROTARY = {"gpt2": 4, "opt": 4, "smollm3": 2}
OTHER_ROTARY = ("deepseek_v3", "gpt_oss")
REFUSED = {
    "deepseek_v3": "the cache goes through Transpose",
    "gpt_oss": "the values are not multiplied by a softmax",
}
"""gpt_oss has a column of the softmax that no key stands for."""


@both_widths
@cases
def test_logits_and_cache_stay(model_type, edits, opset, rows, optimised):
    plain, fused, _ = optimised(model_type, edits, opset)
    batch = prompts(rows)
    expected_past, past = plain.empty_cache(rows), fused.empty_cache(rows)
    for new in (3, 1, 1):  # what follows the prompt
        expected, expected_past = plain.step(batch, expected_past)
        logits, past = fused.step(batch, past)
        assert torch.isfinite(logits).all()  # at padding too, where a row of the mask hides everything
        real = batch.attention_mask[:, -logits.shape[1] :].bool()
        assert relative(logits[real], expected[real]) <= TOLERANCE
        tokens = batch.attention_mask.bool()
        for found, wanted in zip(past, expected_past, strict=True):
            assert found.shape == wanted.shape
            ours, theirs = (torch.from_numpy(array).transpose(1, 2)[tokens] for array in (found, wanted))
            assert relative(ours, theirs) <= TOLERANCE
        generator = torch.Generator().manual_seed(new)
        batch = next_batch(batch, torch.randint(3, VOCABULARY, (rows, new), generator=generator))


@both_widths
@cases
def test_greedy_tokens_stay(model_type, edits, opset, rows, optimised):
    plain, fused, _ = optimised(model_type, edits, opset)
    tokens, logits = greedy(fused, prompts(rows), TOKENS)
    expected_tokens, expected = greedy(plain, prompts(rows), TOKENS)
    assert tokens.equal(expected_tokens)
    assert relative(logits, expected) <= TOLERANCE


@cases
def test_everything_that_can_be_fused_is(model_type, edits, opset, optimised):
    _, fused, result = optimised(model_type, edits, opset)
    refused = REFUSED.get(model_type)
    assert len(result.reasons) == (2 if refused else 0)
    assert all(reason == f"attention of layer {index}: {refused}" for index, reason in enumerate(result.reasons))
    if not refused:
        assert result.fused["Attention"] == 2
    if model_type not in OTHER_ROTARY:
        assert result.fused.get("RotaryEmbedding", 0) == 4 - WITHOUT_ROTARY.get(model_type, 0)
    found = operators(fused.path)
    assert {name: found[name] for name in result.fused} == dict(result.fused)
    assert sum(found.values()) == result.nodes_after < result.nodes_before


@cases
def test_names_and_axes_stay(model_type, edits, opset, optimised):
    plain, fused, _ = optimised(model_type, edits, opset)
    before, after = (onnx.load(graph.path, load_external_data=False).graph for graph in (plain, fused))
    assert list(after.input) == list(before.input)
    assert list(after.output) == list(before.output)


def test_several_rows_with_several_tokens_behind_a_cache_are_no_special_case(optimised):
    """GroupQueryAttention refuses these, which is why it isn't what attention becomes."""
    fused = optimised("llama", "inserted", 23).optimised
    whole, _ = fused.step(prompts(4), fused.empty_cache(4))
    batch = prompts(4)
    first = type(batch)(*(tensor[:, :5] for tensor in batch))
    rest = type(batch)(batch.input_ids[:, 5:], batch.attention_mask, batch.position_ids[:, 5:])
    _, past = fused.step(first, fused.empty_cache(4))
    logits, _ = fused.step(rest, past)
    real = batch.attention_mask[:, 5:].bool()
    np.testing.assert_allclose(logits[real], whole[:, 5:][real], rtol=TOLERANCE, atol=TOLERANCE)
