"""Judgement of a graph: measurements in, errors with their bounds, and a verdict with its reasons, out."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final, NamedTuple

import torch

from alignez_bake.certificate.forward import MARGIN, SITE_TOLERANCE, SIXTEEN_BIT_FACTOR
from alignez_bake.certificate.graph_figures import GraphComparison, GraphGreedy, QuantisedComparison
from alignez_bake.certificate.near_ties import WIDTH, tied_choices

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alignez_bake.certificate.graph_figures import Against
    from alignez_bake.certificate.graph_runs import Case, Differences, GreedyRun
    from alignez_bake.certificate.routing import Routing

GRAPH_TOLERANCE: Final = 1e-4
"""Of logits in 32 or 64 bits, relative Frobenius norm: other kernels, another order of every sum, fused nodes."""


class CaseMeasured(NamedTuple):
    """One way of reading the prompts; all errors prompt by prompt.

    Attributes:
        case: which way.
        to_hooked: the graph against the hooked base, in fp32 where the graph has 16 bits.
        to_baked: the graph against the baked model.
        moved: the base without edits against the hooked base.
        noise: in 16 bits, the hooked base in that dtype against the one in fp32; else None.
        tied: where some choice of experts was nearly tied in the hooked base, bool [prompts].
    """

    case: Case
    to_hooked: Differences
    to_baked: Differences
    moved: Differences
    noise: Differences | None
    tied: torch.Tensor


def choice_tolerance(dtype: torch.dtype) -> float:
    """Relative error of a router's logits that a right graph may have: the graph's own; in 16 bits that of a site."""
    return SITE_TOLERANCE[dtype] if dtype in (torch.bfloat16, torch.float16) else GRAPH_TOLERANCE


def compare_case(measured: CaseMeasured) -> GraphComparison:
    """Errors and bounds over all prompts; if they are not met, over those that are not left out.

    Left out is a prompt whose own error is above its own bound, if some expert was nearly tied there: a graph cannot
    be told which experts to take, and another one changes the logits by far more than rounding. Prompts in which
    nothing was tied, or that agree all the same, always count.
    """
    everything = torch.ones_like(measured.tied)
    found = _compared(measured, everything)
    if not failures(found):
        return found
    beyond = measured.to_hooked.of_prompts() > _bounds(measured)
    if measured.noise is None:
        beyond |= measured.to_baked.of_prompts() > GRAPH_TOLERANCE
    return _compared(measured, ~(measured.tied & beyond))


def _bounds(measured: CaseMeasured) -> torch.Tensor:
    """For each prompt."""
    if measured.noise is None:
        return torch.full(measured.tied.shape, GRAPH_TOLERANCE, dtype=torch.float64)
    return SIXTEEN_BIT_FACTOR * measured.noise.of_prompts()


def _compared(measured: CaseMeasured, kept: torch.Tensor) -> GraphComparison:
    sixteen_bit = measured.noise is not None
    bound = GRAPH_TOLERANCE
    if measured.noise is not None:
        bound = min(SIXTEEN_BIT_FACTOR * measured.noise.relative(kept), sys.float_info.max)
    return GraphComparison(
        measured.case.batch_size,
        measured.case.cache,
        prompts=len(kept),
        left_out=int((~kept).sum()),
        error_to_hooked_base=measured.to_hooked.relative(kept),
        bound_to_hooked_base=bound,
        error_to_baked_model=measured.to_baked.relative(kept),
        bound_to_baked_model=None if sixteen_bit else GRAPH_TOLERANCE,
        moved=measured.moved.relative(kept),
    )


def failures(entry: GraphComparison) -> list[str]:
    """A line for each error above its bound."""
    pairs = [
        ("the hooked base", entry.error_to_hooked_base, entry.bound_to_hooked_base),
        ("the baked model", entry.error_to_baked_model, entry.bound_to_baked_model),
    ]
    return [
        (
            f"batch {entry.batch_size}, {entry.cache} cache: the graph's logits differ from those of {name} by "
            f"{error:.2e}, bound {bound:.2e}"
        )
        for name, error, bound in pairs
        if bound is not None and not error <= bound
    ]


def doubts(comparisons: Sequence[GraphComparison], dtype: str) -> list[str]:
    """Why agreement would show nothing: an edit that hardly moves the model, or too few prompts that were compared."""
    found = [
        (
            f"batch {entry.batch_size}, {entry.cache} cache: the graph's logits differ after a near tie of experts on "
            f"{entry.left_out} of {entry.prompts} prompts, which shows nothing, and too few prompts are left"
        )
        for entry in comparisons
        if 2 * entry.left_out > entry.prompts
    ]
    still = [entry for entry in comparisons if entry.left_out < entry.prompts and _moves_too_little(entry)]
    if still:
        noise = "" if still[0].bound_to_baked_model is not None else f" or the noise of {dtype}"
        found.append(
            f"the edit moves the logits by {min(entry.moved for entry in still):.2e} only, less than {MARGIN} "
            f"tolerances{noise}, so agreement shows nothing; use a larger strength"
        )
    return found


def _moves_too_little(entry: GraphComparison) -> bool:
    """Whether a graph without the edits could pass; in 16 bits the dtype's own noise must not hide them either."""
    sixteen_bit = entry.bound_to_baked_model is None
    noise = entry.bound_to_hooked_base / SIXTEEN_BIT_FACTOR if sixteen_bit else 0.0
    return not entry.moved >= max(MARGIN * GRAPH_TOLERANCE, noise)


def compare_greedy(
    batch_size: int, against: Against, tokens: Sequence[Sequence[int]], reference: GreedyRun, dtype: torch.dtype
) -> GraphGreedy:
    """How many prompts have equal tokens, and how many of the others prove nothing, since the choice was nearly tied.

    Both rules follow from the tolerance of the logits (`near_ties`). At the first token that differs both models have
    read the same text. There a graph that keeps the tolerance may take the runner-up where it is nearly tied with the
    likeliest token, and no other. Of what was read up to there, n - 1 + j positions for token j after a prompt of n
    tokens, any nearly tied choice of experts may have been made differently. Behind the first token that differs the
    texts are two, and nothing follows from theirs.

    Args:
        batch_size: of the runs.
        against: which model the reference is.
        tokens: the graph's.
        reference: the torch model's, for the same prompts.
        dtype: of the weights.
    """
    tied = _tied_experts(reference.routing, len(tokens), dtype)
    equal = tied_tokens = tied_experts = 0
    for row, (found, expected) in enumerate(zip(tokens, reference.tokens, strict=True)):
        first = next((step for step, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b), None)
        if first is None:
            equal += 1
            continue
        read = len(tied[row]) - (len(found) - 1) + first  # the last token is never read
        if bool(tied[row][: max(0, read)].any()):
            tied_experts += 1
        elif (
            int(reference.runners_up[row, first]) == found[first]
            and float(reference.margins[row, first]) <= WIDTH * GRAPH_TOLERANCE
        ):
            tied_tokens += 1
    return GraphGreedy(batch_size, against, len(tokens), equal, tied_tokens, tied_experts)


def _tied_experts(routing: Routing | None, prompts: int, dtype: torch.dtype) -> list[torch.Tensor]:
    if routing is None:
        return [torch.zeros(0, dtype=torch.bool)] * prompts
    return tied_choices(routing, choice_tolerance(dtype))


def quantisation_doubts(comparisons: Sequence[QuantisedComparison]) -> list[str]:
    """The reason, if quantisation changes the logits as much as the edit does: what is left of it is not known."""
    return [
        (
            f"batch {entry.batch_size}, {entry.cache} cache: quantisation changes the logits by "
            f"{entry.error_to_exact_graph:.2e}, the edit by {entry.moved:.2e}: the edit drowns; use more bits, smaller "
            "blocks, or a larger strength"
        )
        for entry in comparisons
        if not entry.error_to_exact_graph < entry.moved
    ]
