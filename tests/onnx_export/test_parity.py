"""A graph gives the logits and the greedy tokens of the model it was made of."""

from __future__ import annotations

import pytest
import torch

from tests.onnx_export.graphs import TOLERANCE, greedy, next_batch, prompts
from tests.running import relative
from tests.tiny_models import MODEL_TYPES, VOCABULARY

MOVED = 100
TOKENS = 64
DEFAULT = [("llama", "folded"), ("llama", "inserted"), ("gemma2", "base"), ("gpt2", "base"), ("gpt_oss", "folded")]
MODELS = [
    *DEFAULT,
    *(
        pytest.param(model_type, edits, marks=pytest.mark.sweep)
        for model_type in MODEL_TYPES
        for edits in ("base", "folded", "inserted")
        if (model_type, edits) not in DEFAULT
    ),
]
both_widths = pytest.mark.parametrize("rows", [1, 4])


@both_widths
@pytest.mark.parametrize(("model_type", "edits"), MODELS)
def test_logits_and_cache_are_those_of_torch(model_type, edits, rows, exported):
    expected, found, _ = exported(model_type, edits)
    batch = prompts(rows)
    past, cache = found.empty_cache(rows), expected.empty_cache(rows)
    for new in (3, 1, 1):  # what follows the prompt: several tokens behind a filled cache, then one at a time
        logits, past = found.step(batch, past)
        reference, cache = expected.step(batch, cache)
        assert logits.dtype == torch.float32
        assert logits.shape == reference.shape
        real = batch.attention_mask[:, -logits.shape[1] :].bool()
        assert relative(logits[real], reference[real]) <= TOLERANCE
        tensors = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
        for present, kept in zip(past, tensors, strict=True):
            tokens = batch.attention_mask.bool()
            assert present.shape == kept.shape
            ours, theirs = torch.from_numpy(present).transpose(1, 2)[tokens], kept.transpose(1, 2)[tokens]
            assert relative(ours, theirs) <= TOLERANCE
        generator = torch.Generator().manual_seed(new)
        batch = next_batch(batch, torch.randint(3, VOCABULARY, (rows, new), generator=generator))


@both_widths
@pytest.mark.parametrize(("model_type", "edits"), MODELS)
def test_greedy_tokens_are_those_of_torch(model_type, edits, rows, exported):
    expected, found, _ = exported(model_type, edits)
    batch = prompts(rows)
    tokens, logits = greedy(found, batch, TOKENS)
    reference_tokens, reference = greedy(expected, batch, TOKENS)
    assert tokens.shape == (rows, TOKENS)
    assert tokens.equal(reference_tokens)
    # A tiny model may say one token for ever: then it is the logits that tell.
    assert relative(logits, reference) <= TOLERANCE


@pytest.mark.parametrize(("model_type", "edits"), [case for case in DEFAULT if case[1] != "base"])
def test_the_edits_are_in_the_graph(model_type, edits, exported):
    """Parity with the edited model would mean nothing if the edits did nothing."""
    _, graph, base = exported(model_type, edits)
    batch = prompts(1)
    logits, _ = graph.step(batch, graph.empty_cache(1))
    with torch.no_grad():
        assert relative(logits, base(**batch._asdict()).logits) >= MOVED * TOLERANCE


def test_a_prompt_in_two_steps_gives_the_logits_of_one(exported):
    """The cache that comes out is the one that goes in."""
    graph = exported("llama", "folded").graph
    batch = prompts(4)
    whole, _ = graph.step(batch, graph.empty_cache(4))
    first = type(batch)(*(tensor[:, :9] for tensor in batch))
    rest = type(batch)(batch.input_ids[:, 9:], batch.attention_mask, batch.position_ids[:, 9:])
    _, past = graph.step(first, graph.empty_cache(4))
    logits, _ = graph.step(rest, past)
    assert relative(logits, whole[:, 9:]) <= TOLERANCE
    without_cache, _ = graph.step(type(batch)(*(tensor[:, 9:] for tensor in batch)), graph.empty_cache(4))
    assert relative(without_cache, whole[:, 9:]) >= MOVED * TOLERANCE
