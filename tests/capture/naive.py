"""The plainest recording: one sequence at a time, no padding, every module's input and output kept whole."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import torch

from alignez_bake.lowering.hooks import edited_by_hooks
from alignez_bake.site import Site


def whole_sequence(lm, ids, site, side, plan=None):
    """Activations [T, d] of one sequence, and its logits [T, vocabulary]."""
    if site.kind == "embed":
        path, rows = lm.architecture.embed, "all"
    elif site.kind == "residual":
        path, rows = f"{lm.architecture.layers}.{site.layer}", "all"
    else:
        linear = lm.architecture.sites[site.kind]
        path, rows = f"{lm.architecture.layers}.{site.layer}.{linear.module}", linear.rows
    seen = {}

    def hook(module, args, output):
        seen["input"], seen["output"] = args[0], output[0] if isinstance(output, tuple) else output

    edited = nullcontext() if plan is None else edited_by_hooks(lm.model, lm.architecture, plan)
    with torch.no_grad(), edited:
        handle = lm.model.get_submodule(path).register_forward_hook(hook)
        logits = lm.model(input_ids=torch.tensor([ids])).logits[0]
        handle.remove()
    values = seen[side].double().numpy()
    values = values.reshape(len(ids), -1) if values.ndim == 2 else values[0]
    if side == "output" and rows != "all":
        half = values.shape[1] // 2
        values = values[:, :half] if rows == "first_half" else values[:, half:]
    return values, logits.double().numpy()


def rows(lm, pair, spec, reading, plan=None):
    """One reading of a spec for one pair, said with lists."""
    tokens = spec.tokens
    ids = [*pair.prompts[reading.context], *pair.answers[spec.answer]]
    values, _ = whole_sequence(lm, ids, spec.site, reading.side, plan)
    answer_start = len(pair.prompts[reading.context])
    if tokens == "last":
        return values[len(ids) - 1 :]
    if tokens == "answer_mean":
        return values[answer_start:].mean(axis=0, keepdims=True)
    if tokens == "answer":
        return values[answer_start:]
    return values[answer_start - pair.shared :]


def divergences(lm, pair, answer, tokens):
    """JSD of every token from probabilities, not from log-probabilities."""
    found = []
    for context in ("good", "bad"):
        ids = [*pair.prompts[context], *pair.answers[answer]]
        _, logits = whole_sequence(lm, ids, Site("mlp_write", 0), "output")
        start = len(pair.prompts[context]) - (pair.shared if tokens == "shared" else 0)
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        found.append((exponentials / exponentials.sum(axis=1, keepdims=True))[start:])
    p, q = found
    m = (p + q) / 2

    def entropy(x):
        return -(x * np.log(np.maximum(x, 1e-300))).sum(axis=1)

    return entropy(m) - entropy(p) / 2 - entropy(q) / 2
