"""The calls by which a graph and torch models are compared: whole prompts, prompts piece by piece, greedy tokens."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol

import torch

from alignez_bake.certificate.forward_passes import LOGIT_POSITIONS, batches, greedy_tokens
from alignez_bake.certificate.near_ties import RunnersUp
from alignez_bake.certificate.routing import RouterCalls, routing_of, watched_routers
from alignez_bake.language_model.batching import PaddedBatch
from alignez_bake.language_model.kv_cache import cache_name
from alignez_bake.runtime.decoder import Decoder
from alignez_bake.runtime.generate import generate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from transformers import PreTrainedModel

    from alignez_bake.architectures.architecture import Architecture
    from alignez_bake.certificate.routing import Routing
    from alignez_bake.progress import Advance
    from alignez_bake.runtime.session import OnnxModel

BATCH_SIZES: Final = (1, 4)
MOST_ALONE: Final = 4
"""Most tokens of a prompt that are given one at a time, as decoding does."""

Cache = Literal["empty", "filled"]


class Case(NamedTuple):
    """How prompts are read.

    Attributes:
        batch_size: prompts that are read together, padded on the left.
        cache: `empty`: the whole prompt in one call; `filled`: the first part, then several tokens behind it in the
            cache, then the last ones one at a time.
    """

    batch_size: int
    cache: Cache


CASES: Final = tuple(Case(size, cache) for size in BATCH_SIZES for cache in ("empty", "filled"))


class Differences(NamedTuple):
    """Of logits, prompt by prompt, in fp64 [prompts]: what is needed of them for any choice of prompts.

    Attributes:
        squared: ‖found - expected‖².
        expected: ‖expected‖².
    """

    squared: torch.Tensor
    expected: torch.Tensor

    def of_prompts(self) -> torch.Tensor:
        """Relative error of each."""
        return (self.squared / self.expected).sqrt()

    def relative(self, kept: torch.Tensor) -> float:
        """Relative Frobenius error over the prompts that are kept, bool [prompts]; 0 over none.

        The largest float stands for an infinite or undefined one: certificates are JSON, which has no infinity.
        """
        if not kept.any():
            return 0.0
        error = float((self.squared[kept].sum() / self.expected[kept].sum()).sqrt())
        return min(error, sys.float_info.max) if error >= 0 else sys.float_info.max


class Recorded(NamedTuple):
    """What a torch model gave in one case.

    Attributes:
        logits: for each prompt those of its last tokens, at most 16, [tokens, vocabulary], on the CPU.
        routing: what its routers gave; None without experts.
    """

    logits: list[torch.Tensor]
    routing: Routing | None


class GreedyRun(NamedTuple):
    """Greedy tokens of a torch model, and how near another choice was.

    Attributes:
        tokens: after each prompt, the same number after each.
        runners_up: the second likeliest at each step, int64 [prompts, tokens].
        margins: gap to it over the norm of all logits, [prompts, tokens].
        routing: what its routers gave; None without experts.
    """

    tokens: list[list[int]]
    runners_up: torch.Tensor
    margins: torch.Tensor
    routing: Routing | None


class Run(Protocol):
    """One batch on its way through a model, whose cache begins empty."""

    def step(self, batch: PaddedBatch, keep: int) -> torch.Tensor:
        """Logits [batch, keep, vocabulary] of the last `keep` of the new tokens, on the CPU.

        Args:
            batch: ids and positions [batch, new], mask [batch, past + new].
            keep: at least 1.
        """
        ...


class _GraphRun:
    def __init__(self, graph: OnnxModel, rows: int) -> None:
        self._decoder = Decoder(graph, rows)

    def step(self, batch: PaddedBatch, keep: int) -> torch.Tensor:
        inputs = {name: tensor.numpy() for name, tensor in batch._asdict().items()}
        return torch.from_numpy(self._decoder.step_with_all_logits(inputs)[:, -keep:].copy())


class _TorchRun:
    """The cache is the one that the model makes for itself, as for its users."""

    def __init__(self, model: PreTrainedModel, architecture: Architecture) -> None:
        self._model, self._name = model, cache_name(model)
        self._routers = architecture.router_paths(len(model.get_submodule(architecture.layers)))
        self._cache: Any = None
        self.calls = RouterCalls({path: [] for path in self._routers}, {path: [] for path in self._routers})
        self.first_mask: torch.Tensor | None = None

    @torch.no_grad()
    def step(self, batch: PaddedBatch, keep: int) -> torch.Tensor:
        if self.first_mask is None:
            self.first_mask = batch.attention_mask
        placed = {name: tensor.to(self._model.device) for name, tensor in batch._asdict().items()}
        with watched_routers(self._model, self._routers) as calls:
            output = self._model(**placed, use_cache=True, logits_to_keep=keep, **{self._name: self._cache})
        for path in self._routers:
            self.calls.logits[path].extend(calls.logits[path])
            self.calls.chosen[path].extend(calls.chosen[path])
        self._cache = output[self._name]
        # opt of transformers 4.57 gives every position, whatever it is asked for.
        logits: torch.Tensor = output.logits[:, -keep:].cpu()
        return logits


def pieces(shortest: int, columns: int, cache: Cache) -> list[slice]:
    """The columns of each call; every row has a token of its own in the first one.

    Args:
        shortest: length of the shortest row.
        columns: of the batch, the length of the longest row.
        cache: see `Case`.
    """
    if cache == "empty":
        return [slice(0, columns)]
    behind = shortest // 2
    alone = min(MOST_ALONE, behind // 2)
    ends = sorted({columns - behind, *range(columns - alone, columns + 1)})
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def graph_logits(
    graph: OnnxModel, prompts: Sequence[Sequence[int]], case: Case, advance: Advance
) -> list[torch.Tensor]:
    """For each prompt the graph's logits of its last tokens, as `Recorded.logits`.

    Raises:
        BadInputError: what `Decoder.step` raises.
    """
    return _logits(lambda rows: _GraphRun(graph, rows), prompts, case, advance)


def torch_logits(
    model: PreTrainedModel,
    architecture: Architecture,
    prompts: Sequence[Sequence[int]],
    case: Case,
    advance: Advance,
) -> Recorded:
    """The same calls in torch, hooks included; routers choose freely, as those of a graph do."""
    runs: list[_TorchRun] = []

    def begin(_rows: int) -> _TorchRun:
        runs.append(_TorchRun(model, architecture))
        return runs[-1]

    logits = _logits(begin, prompts, case, advance)
    masks = [run.first_mask for run in runs if run.first_mask is not None]
    return Recorded(logits, routing_of([run.calls for run in runs], masks))


def _logits(
    begin: Callable[[int], Run], prompts: Sequence[Sequence[int]], case: Case, advance: Advance
) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    for ids, mask, positions in batches(prompts, case.batch_size, torch.device("cpu")):
        rows, columns = ids.shape
        first_kept = max(0, columns - LOGIT_POSITIONS)
        run, parts = begin(rows), []
        for piece in pieces(int(mask.sum(dim=1).min()), columns, case.cache):
            keep = max(0, piece.stop - max(piece.start, first_kept))
            logits = run.step(PaddedBatch(ids[:, piece], mask[:, : piece.stop], positions[:, piece]), max(1, keep))
            parts.append(logits[:, logits.shape[1] - keep :])
        real = mask[:, first_kept:].bool()
        found += [row[there] for row, there in zip(torch.cat(parts, dim=1), real, strict=True)]
        advance(rows)
    return found


def differences(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> Differences:
    """Of two records of the same prompts."""
    pairs = [(a.double(), b.double()) for a, b in zip(found, expected, strict=True)]
    return Differences(
        torch.stack([(a - b).square().sum() for a, b in pairs]), torch.stack([b.square().sum() for _, b in pairs])
    )


def graph_greedy(
    graph: OnnxModel, prompts: Sequence[Sequence[int]], batch_size: int, advance: Advance, *, new_tokens: int
) -> list[list[int]]:
    """Exactly `new_tokens` greedy tokens after each prompt, by the runner that users have.

    Raises:
        BadInputError: what `generate` raises.
    """
    tokens: list[list[int]] = []
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        tokens += generate(graph, batch, max_new_tokens=new_tokens)
        advance(len(batch))
    return tokens


def torch_greedy(
    model: PreTrainedModel,
    architecture: Architecture,
    prompts: Sequence[Sequence[int]],
    batch_size: int,
    advance: Advance,
    *,
    new_tokens: int,
) -> GreedyRun:
    """As `greedy_tokens`, with the runners-up."""
    watchers: list[RunnersUp] = []

    def watcher() -> RunnersUp:
        watchers.append(RunnersUp())
        return watchers[-1]

    tokens, routing = greedy_tokens(
        model, architecture, prompts, batch_size, advance, new_tokens=new_tokens, watcher=watcher
    )
    return GreedyRun(
        tokens,
        torch.cat([torch.stack(entry.tokens, dim=1) for entry in watchers]),
        torch.cat([torch.stack(entry.margins, dim=1) for entry in watchers]),
        routing,
    )
