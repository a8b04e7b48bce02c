"""The experts that the routers of a mixture choose: recorded, counted, and replayed in runs that are compared.

A router gives each token to its k best experts. Where two experts are nearly tied, the last bit of two correct runs
decides, and the output jumps by far more than rounding. So runs that are compared are made under one choice, that of
the reference, and what their own routers would have chosen is counted.

**The weights under a given choice.** A router scores all experts, takes the set S of the k best, and weighs those by a
formula of its kind (`expert_weights`). Under another set the same formula holds with that set; scores and weights are
the run's own. So weights are a continuous function of the router's input and parameters, with no jump, and where the
set is the router's own, the same operations in the same order give the same bits.

**What a given choice hides.** In the weights only the chosen experts count, up to a common factor: a change of another
expert's row of the router, which would change the choice alone, would not show. So the scores of all experts are
compared too, under the bounds of the other outputs: where they agree, a choice that flips is a near-tie.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from alignez_bake.certificate.expert_weights import ROUTERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import nn

    from alignez_bake.architectures.architecture import Routing as RoutingKind


@dataclass(frozen=True)
class RouterCalls:
    """What the routers of a model gave for one batch, by module path and call by call, padding included, on the CPU.

    Attributes:
        logits: what it ranks every expert by, [batch · length, experts]: logits in the model's dtype, or scores made of
            them in float32.
        chosen: each router's own choice, int64 [batch · length, k], the likeliest expert first.
    """

    logits: dict[str, list[torch.Tensor]]
    chosen: dict[str, list[torch.Tensor]]


class Routing(NamedTuple):
    """What the routers of a model gave for each prompt, at real tokens, and what it takes to replay their choice.

    Attributes:
        logits: for each prompt [routers, tokens, experts]; as in `RouterCalls`.
        chosen: for each prompt int64 [routers, tokens, k], the routers' own choice, sorted by the experts' numbers.
        batches: the calls as they were made, for `watched_routers`.
    """

    logits: tuple[torch.Tensor, ...]
    chosen: tuple[torch.Tensor, ...]
    batches: tuple[RouterCalls, ...]


class Generated(NamedTuple):
    """Greedy tokens.

    Attributes:
        tokens: after each prompt, the same number after each.
        routing: what the routers gave, at the prompts and at the tokens that were fed back; None without experts.
    """

    tokens: list[list[int]]
    routing: Routing | None = None


class RoutingComparison(NamedTuple):
    """What the baked model's routers gave under the reference's choice, for one batch size.

    Attributes:
        batch_size: of the runs.
        choices: number of choices: one for each token and router.
        flipped_share: share of them that the baked model's own router would have made differently.
        logits_error: relative error of what the routers rank all experts by, against the reference.
        logits_bound: what it must not exceed.
    """

    batch_size: int
    choices: int
    flipped_share: float
    logits_error: float
    logits_bound: float


class GreedyComparison(NamedTuple):
    """Greedy tokens, which are generated with nothing replayed, for one batch size.

    Attributes:
        batch_size: of the runs.
        prompts: number of prompts.
        equal: prompts whose tokens are all equal.
        flipped: prompts with a choice that flipped, up to the first token that differs.
        left_out: those of them whose tokens differ: no proof of a wrong bake, nor of a right one.
    """

    batch_size: int
    prompts: int
    equal: int
    flipped: int = 0
    left_out: int = 0

    def failures(self) -> list[str]:
        """The reason, if tokens differ with no choice flipped, where equality is required."""
        wrong = self.prompts - self.equal - self.left_out
        if not wrong:
            return []
        flips = f" with no choice of experts flipped before; {self.left_out} left out" if self.flipped else ""
        share = f"on {wrong / self.prompts:.0%} of the prompts"
        return [f"batch {self.batch_size}: greedy tokens differ from the hooked base's {share}{flips}"]

    def doubts(self) -> list[str]:
        """The reason, if too many prompts are left out for the others to show much."""
        if 2 * self.left_out <= self.prompts:
            return []
        return [
            (
                f"batch {self.batch_size}: greedy tokens of {self.left_out} of {self.prompts} prompts differ after a "
                "choice of experts flipped, which shows nothing, and too few prompts are left"
            )
        ]


class RoutingFigures(NamedTuple):
    """What the certificate states of a mixture of experts.

    Attributes:
        chosen_by: whose choice all compared runs were made under.
        comparisons: one for each batch size.
        greedy: one for each batch size.
    """

    chosen_by: str
    comparisons: tuple[RoutingComparison, ...]
    greedy: tuple[GreedyComparison, ...]

    def to_json(self) -> dict[str, Any]:
        """The figures, as JSON values."""
        return {
            "chosen_by": self.chosen_by,
            "comparisons": [entry._asdict() for entry in self.comparisons],
            "greedy": [entry._asdict() for entry in self.greedy],
        }


@contextmanager
def watched_routers(
    model: nn.Module, routers: Mapping[str, RoutingKind], replay: RouterCalls | None = None
) -> Iterator[RouterCalls]:
    """Inside this context what the routers give is recorded, and their choice is that of another run, if one is given.

    Args:
        model: the causal language model; without routers nothing is registered.
        routers: module paths of its routers, of `Architecture.router_paths`, each with how it weighs its experts. Each
            gives three values, weights and indices of the chosen experts last.
        replay: the other run, with the same batch and the same calls in the same order.

    Yields:
        The record, which grows with each call. It holds the routers' own choice, replayed or not.

    Raises:
        RuntimeError: a router whose weights are not those of its formula, so that none could be given.
    """
    calls = RouterCalls({path: [] for path in routers}, {path: [] for path in routers})

    def watcher(path: str) -> Callable[..., tuple[torch.Tensor, ...] | None]:
        formula = ROUTERS[routers[path]]

        def watch(
            module: nn.Module, args: tuple[torch.Tensor, ...], output: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
        ) -> tuple[torch.Tensor, ...] | None:
            # `first` is the logits, or in transformers 5.0 their softmax; nothing but the auxiliary loss reads it.
            first, weights, chosen = output
            call = len(calls.chosen[path])
            calls.logits[path].append(formula.scores(module, args[0]).cpu())
            calls.chosen[path].append(chosen.cpu())
            if replay is None:
                return None
            own = formula.weights(module, args[0], chosen).to(weights)
            if not torch.allclose(own, weights, rtol=1e-6, equal_nan=True):
                raise RuntimeError(
                    f"{path} weighs its experts by another formula than that of {routers[path]!r} routers: its choice "
                    "cannot be replayed"
                )
            given = replay.chosen[path][call].to(chosen.device)
            return first, formula.weights(module, args[0], given).to(weights.dtype), given

        return watch

    with ExitStack() as stack:
        for path in routers:
            stack.callback(model.get_submodule(path).register_forward_hook(watcher(path)).remove)
        yield calls


def routing_of(batches: Sequence[RouterCalls], masks: Sequence[torch.Tensor]) -> Routing | None:
    """What was recorded, prompt by prompt and without the padding; None where there are no routers.

    Args:
        batches: one record for each batch. The calls after a batch's first go on where it ended, as generation does.
        masks: for each batch [batch, length of its first call], true at real tokens.
    """
    if not batches or not batches[0].chosen:
        return None
    logits: list[torch.Tensor] = []
    chosen: list[torch.Tensor] = []
    for calls, mask in zip(batches, masks, strict=True):
        logits += _by_prompt(calls.logits, mask.cpu())
        chosen += [entry.sort(dim=-1).values for entry in _by_prompt(calls.chosen, mask.cpu())]
    return Routing(tuple(logits), tuple(chosen), tuple(batches))


def _by_prompt(calls: dict[str, list[torch.Tensor]], mask: torch.Tensor) -> list[torch.Tensor]:
    """[batch · length, n] by router and call -> for each prompt [routers, real tokens of all calls, n]."""
    size = len(mask)
    values = torch.stack(
        [torch.cat([call.view(size, -1, call.shape[-1]) for call in of_router], dim=1) for of_router in calls.values()]
    )
    # What generation feeds back is never padding.
    real = torch.nn.functional.pad(mask.bool(), (0, values.shape[2] - mask.shape[1]), value=True)
    return [values[:, row, real[row]] for row in range(size)]


def flipped(found: Routing, reference: Routing) -> list[torch.Tensor]:
    """For each prompt where the routers' own choices are different sets of experts, bool [routers, tokens]."""
    return [(a != b).any(dim=-1) for a, b in zip(found.chosen, reference.chosen, strict=True)]


def count_flips(found: Routing, reference: Routing) -> tuple[int, float]:
    """Number of choices, and the share of them that flipped."""
    flips = torch.cat([of_prompt.flatten() for of_prompt in flipped(found, reference)])
    return len(flips), float(flips.double().mean())


def compare_greedy(batch_size: int, found: Generated, reference: Generated) -> GreedyComparison:
    """How many prompts have equal tokens, and how many differ after a flipped choice.

    Token j after a prompt of n tokens comes from what the model read at positions 0 to n - 1 + j: only choices there
    can have changed it. After the first token that differs the model reads another text, whose choices say nothing.

    Args:
        batch_size: of the runs.
        found: of the baked model.
        reference: of the hooked base: the same prompts, the same number of tokens.
    """
    pairs = list(zip(found.tokens, reference.tokens, strict=True))
    equal = sum(tokens == expected for tokens, expected in pairs)
    if found.routing is None or reference.routing is None:
        return GreedyComparison(batch_size, len(pairs), equal)
    with_flips = left_out = 0
    for (tokens, expected), flips in zip(pairs, flipped(found.routing, reference.routing), strict=True):
        first = next((index for index, (a, b) in enumerate(zip(tokens, expected, strict=True)) if a != b), None)
        prompt_tokens = flips.shape[1] - (len(tokens) - 1)  # the last token is never read
        read = flips.shape[1] if first is None else prompt_tokens + first
        if bool(flips[:, :read].any()):
            with_flips += 1
            left_out += first is not None
    return GreedyComparison(batch_size, len(pairs), equal, with_flips, left_out)
