"""Exported graphs in onnxruntime, and the same steps in torch."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import torch
from transformers import DynamicCache

from alignez_bake.language_model.batching import left_padded
from alignez_bake.language_model.kv_cache import cache_name
from tests.tiny_models import PAD_ID, VOCABULARY

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from alignez_bake.language_model.batching import PaddedBatch
    from alignez_bake.onnx_export.names import GraphNames

TOLERANCE = 1e-4


class Graph:
    """A graph, run step by step."""

    def __init__(self, path: Path, names: GraphNames) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.path, self.names = path, names

    def empty_cache(self, rows: int) -> list[NDArray[np.float32]]:
        inputs = {entry.name: entry.shape for entry in self.session.get_inputs()}
        return [np.zeros((rows, inputs[name][1], 0, inputs[name][3]), np.float32) for name in self.names.past]

    def step(self, batch: PaddedBatch, past):
        """Logits, and the cache after it."""
        values = [*(tensor.numpy() for tensor in batch), *past]
        logits, *present = self.session.run(list(self.names.outputs), dict(zip(self.names.inputs, values, strict=True)))
        return torch.from_numpy(logits), present


class Torch:
    """The model that a graph was made of, with the same steps."""

    def __init__(self, model) -> None:
        self.model, self.cache = model, cache_name(model)

    def empty_cache(self, rows: int):
        return DynamicCache()

    def step(self, batch: PaddedBatch, past):
        with torch.no_grad():
            output = self.model(**batch._asdict(), use_cache=True, **{self.cache: past})
        return output.logits, output[self.cache]


def next_batch(batch: PaddedBatch, ids: torch.Tensor) -> PaddedBatch:
    """New tokens [batch, new] behind a batch whose cache is filled."""
    last = batch.position_ids[:, -1:]
    mask = torch.cat((batch.attention_mask, torch.ones_like(ids)), dim=1)
    return type(batch)(ids, mask, last + 1 + torch.arange(ids.shape[1]))


def greedy(runner: Graph | Torch, batch: PaddedBatch, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The likeliest tokens, [batch, tokens], and the logits they were taken from."""
    past, found, seen = runner.empty_cache(len(batch.input_ids)), [], []
    for _ in range(tokens):
        logits, past = runner.step(batch, past)
        seen.append(logits[:, -1:])
        found.append(seen[-1].argmax(dim=-1))
        batch = next_batch(batch, found[-1])
    return torch.cat(found, dim=1), torch.cat(seen, dim=1)


def prompts(rows: int, *, seed: int = 5) -> PaddedBatch:
    """Random prompts, of different lengths where there are several, padded on the left."""
    generator = torch.Generator().manual_seed(seed)
    lengths = [11, 4, 7, 2][:rows]
    return left_padded(
        [torch.randint(3, VOCABULARY, (length,), generator=generator).tolist() for length in lengths], PAD_ID
    )


def operators(path: Path) -> Counter[str]:
    """How often each operator occurs."""
    return Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)


def operators_below(path: Path, module: str) -> Counter[str]:
    """How often each operator occurs among the nodes of one module."""
    graph = onnx.load(path, load_external_data=False).graph
    scopes = ({entry.key: entry.value for entry in node.metadata_props} for node in graph.node)
    return Counter(
        node.op_type
        for node, entries in zip(graph.node, scopes, strict=True)
        if f"'model.{module}'" in entries.get("pkg.torch.onnx.name_scopes", "")
    )
