"""Tiny classifiers with random values of their own, as folders."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

from tests.tiny_models import PAD_ID, VOCABULARY, save_tiny_tokenizer, tiny_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedTokenizerFast

_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": PAD_ID,
}


def save_classifier(
    path: Path,
    labels: tuple[str, ...] = (),
    *,
    kind: str = "llama",
    tokenizer: PreTrainedTokenizerFast | None = None,
    **settings: Any,
) -> Path:
    """A classifier of these labels, or without any a reward model; `settings` are entries of the config."""
    named = {"id2label": dict(enumerate(labels))} if labels else {"num_labels": 1}
    config_class, model_class = {
        "llama": (LlamaConfig, LlamaForSequenceClassification),
        "bert": (BertConfig, BertForSequenceClassification),
    }[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model_class(config_class(**{**_SIZES, **named, **settings})).eval()
    for index, parameter in enumerate(model.parameters()):
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
        with torch.no_grad():
            parameter.add_(0.3 * noise)
    model.save_pretrained(path)
    save_tiny_tokenizer(tiny_tokenizer() if tokenizer is None else tokenizer, path)
    return path
