"""From logits to the next token: the likeliest one, or a sample."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from alignez_bake.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Chooser = Callable[[NDArray[Any]], NDArray[np.int64]]  # logits [batch, vocabulary] to tokens [batch]


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        temperature: above 0; 1 is the model's own distribution.
        top_p: above 0, at most 1: the likeliest tokens whose probabilities first add up to it are the only ones
            drawn; 1 keeps all. (Nucleus sampling, Holtzman et al. 2020, arXiv 1904.09751.)
        top_k: at least 1: so many of the likeliest tokens are the only ones drawn, and `top_p` is a share of them;
            None keeps all.
        seed: 0 or more; the same seed, graph, batch and provider give the same tokens.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the bounds.

        Raises:
            BadInputError: a value out of them.
        """
        if not 0 < self.temperature < math.inf:
            raise BadInputError(f"temperature {self.temperature} must be a finite number above 0 (greedy: no sampling)")
        if not 0 < self.top_p <= 1:
            raise BadInputError(f"top_p {self.top_p} must be above 0 and at most 1")
        if self.top_k is not None and self.top_k < 1:
            raise BadInputError(f"top_k {self.top_k} must be at least 1 (all tokens: no top_k)")
        if self.seed < 0:
            raise BadInputError(f"seed {self.seed} must be 0 or more")


def chooser(sampling: Sampling | None, rows: int) -> Chooser:
    """What chooses the tokens of a batch, step by step.

    Args:
        sampling: None for the likeliest token (of equal ones the first).
        rows: of the batch. Each row draws from a stream of its own, so that what the others do, or when they
            end, changes nothing.
    """
    if sampling is None:
        return _likeliest
    streams = [np.random.default_rng(seed) for seed in np.random.SeedSequence(sampling.seed).spawn(rows)]

    def draw(logits: NDArray[Any]) -> NDArray[np.int64]:
        rows = zip(logits, streams, strict=True)
        return np.array([_drawn(row, sampling, stream.random()) for row, stream in rows], dtype=np.int64)

    return draw


def _likeliest(logits: NDArray[Any]) -> NDArray[np.int64]:
    tokens: NDArray[np.int64] = logits.argmax(axis=-1).astype(np.int64)
    return tokens


def _drawn(logits: NDArray[Any], sampling: Sampling, uniform: float) -> int:
    """The token at which the cumulated probability passes `uniform`.

    fp64: with 2¹⁸ tokens an fp32 sum loses the rare ones.
    """
    scaled = logits.astype(np.float64)
    weights = np.exp((scaled - scaled.max()) / sampling.temperature)
    if sampling.top_k is not None and sampling.top_k < len(weights):
        weights = _alone(weights, _likeliest_of(weights, sampling.top_k))
    if sampling.top_p < 1:
        weights = _alone(weights, _nucleus(weights, sampling.top_p))
    cumulated = np.cumsum(weights)
    place = int(np.searchsorted(cumulated, uniform * cumulated[-1], side="right"))
    # The product can round up to the whole sum, and then no place is left.
    return place if place < len(weights) else int(np.flatnonzero(weights)[-1])


def _alone(weights: NDArray[np.float64], kept: NDArray[np.int64]) -> NDArray[np.float64]:
    """The weights with zeros everywhere else."""
    left = np.zeros_like(weights)
    left[kept] = weights[kept]
    return left


def _likeliest_of(weights: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """The `count` likeliest tokens, of equal ones the first; selected, not sorted."""
    least = np.partition(weights, -count)[-count]
    above, equal = np.flatnonzero(weights > least), np.flatnonzero(weights == least)
    return np.concatenate([above, equal[: count - len(above)]])


def _nucleus(weights: NDArray[np.float64], top_p: float) -> NDArray[np.int64]:
    """The likeliest tokens up to the one at which their sum first reaches top_p, of equal ones the first.

    Only tokens of at least (1 - top_p) / n of the sum are sorted, n the number of all: the others together have
    less than 1 - top_p, so those sorted reach top_p without them. Sorting 2¹⁷ tokens takes longer than a step of
    a small model; those above the bound are mostly a few hundred.
    """
    total = weights.sum()
    likely = np.flatnonzero(weights >= (1 - top_p) * total / len(weights))
    order: NDArray[np.int64] = likely[np.argsort(-weights[likely], kind="stable")]
    return order[: int(np.searchsorted(np.cumsum(weights[order]), top_p * total)) + 1]
