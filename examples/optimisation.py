"""The training loop: plain AdamW on batches of documents, seeded, the same numbers every time on one machine."""

import math
import sys
import time
from dataclasses import dataclass
from random import Random

import torch
from torch.nn import functional
from transformers import PreTrainedModel

_IGNORED = -100
_POOL = 8
"""Batches are cut from a pool of so many batches sorted by length, which saves about a third of the padding."""


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up to the peak, then a cosine down to a twentieth of it."""

    steps: int
    peak: float
    batch_size: int = 32
    warm_up: int = 40
    weight_decay: float = 0.05

    def learning_rate(self, step: int) -> float:
        """Return the rate of one step, counted from 0."""
        if step < self.warm_up:
            return self.peak * (step + 1) / self.warm_up
        done = (step - self.warm_up) / max(1, self.steps - self.warm_up)
        return self.peak * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done)))


def batches(sequences: list[list[int]], size: int, seed: int) -> list[list[list[int]]]:
    """Cut the sequences into batches of similar length; each is used once."""
    rng = Random(seed)
    result = []
    for start in range(0, len(sequences), size * _POOL):
        pool = sorted(sequences[start : start + size * _POOL], key=len)
        cut = [pool[i : i + size] for i in range(0, len(pool), size)]
        rng.shuffle(cut)
        result += cut
    return result


def train(model: PreTrainedModel, sequences: list[list[int]], schedule: Schedule, seed: int, label: str) -> float:
    """Train on every sequence once; return the mean loss per token of the last twentieth of the steps."""
    torch.manual_seed(seed)
    model.train()
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=schedule.peak, betas=(0.9, 0.95), weight_decay=schedule.weight_decay
    )
    losses = []
    began = time.monotonic()
    for step, batch in enumerate(batches(sequences, schedule.batch_size, seed)):
        for group in optimiser.param_groups:
            group["lr"] = schedule.learning_rate(step)
        loss = _loss(model, batch)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
        _show_progress(label, step + 1, schedule.steps, losses[-1], time.monotonic() - began)
    model.eval()
    last = losses[-max(1, len(losses) // 20) :]
    return sum(last) / len(last)


def mean_loss(model: PreTrainedModel, sequences: list[list[int]], batch_size: int = 64) -> float:
    """Return the mean over batches of the loss per token, without training."""
    with torch.inference_mode():
        losses = [
            _loss(model, sequences[start : start + batch_size]).item() for start in range(0, len(sequences), batch_size)
        ]
    return sum(losses) / len(losses)


def _loss(model: PreTrainedModel, batch: list[list[int]]) -> torch.Tensor:
    """Pad on the right, where causal attention makes the padding harmless, and leave it out of the loss."""
    longest = max(map(len, batch))
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    labels = torch.full((len(batch), longest), _IGNORED)
    for row, sequence in enumerate(batch):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        labels[row, : len(sequence)] = ids[row, : len(sequence)]
    logits = model(input_ids=ids, use_cache=False).logits
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=_IGNORED)


def _show_progress(label: str, done: int, steps: int, loss: float, elapsed: float) -> None:
    if done % 20 and done != steps:
        return
    left = elapsed / done * (steps - done)
    print(f"{label}: step {done}/{steps}, loss {loss:.3f}, {left:.0f} s left", file=sys.stderr, flush=True)
