"""Where the last bits of two right runs decide: experts, and likeliest tokens, that are nearly tied.

**How near.** Let two runs give the values v and v' of one vector, with ‖v' - v‖ <= τ ‖v‖. Of two entries a and b

    (v'_a - v'_b) - (v_a - v_b) = (e_a - e_b)ᵀ (v' - v)

and ‖e_a - e_b‖ = √2, so by Cauchy and Schwarz the gap between them moves by at most √2 τ ‖v‖. A run that keeps the
tolerance τ can order two entries differently only where their gap in v is no larger than that. So a difference of
choice elsewhere proves that the tolerance is not kept, and one within that width proves nothing.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import torch

if TYPE_CHECKING:
    from alignez_bake.certificate.routing import Routing

WIDTH: Final = math.sqrt(2)
"""Of a near tie, in units of the tolerance times the norm of all values."""


class RunnersUp:
    """Watches a greedy generation: which token came second at each step, and by how much; changes nothing.

    It is a logits processor of transformers, whose own class has no types.

    Attributes:
        tokens: int64 [batch], one entry a step.
        margins: gap between the two likeliest logits over the norm of all logits, [batch], one entry a step.
    """

    def __init__(self) -> None:
        """Begin with no step."""
        self.tokens: list[torch.Tensor] = []
        self.margins: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """One step; scores are float32 logits [batch, vocabulary]."""
        del input_ids
        best, tokens = scores.topk(2, dim=-1)
        self.tokens.append(tokens[:, 1].cpu())
        self.margins.append(((best[:, 0] - best[:, 1]) / scores.norm(dim=-1)).cpu())
        return scores


def tied_choices(routing: Routing, tolerance: float) -> list[torch.Tensor]:
    """For each prompt bool [tokens]: where some router could choose others in a run that keeps the tolerance.

    Experts are taken to be chosen by their logits. A router that chooses by another score, so that it passes over a
    larger logit, counts as nearly tied there: the gap that would tell is not known.

    Args:
        routing: of the run that is compared with.
        tolerance: relative, of one router's logits at one token.
    """
    return [
        _is_near(logits.double(), chosen, tolerance).any(dim=0)
        for logits, chosen in zip(routing.logits, routing.chosen, strict=True)
    ]


def _is_near(logits: torch.Tensor, chosen: torch.Tensor, tolerance: float) -> torch.Tensor:
    """[routers, tokens, experts] and [routers, tokens, k] -> bool [routers, tokens]."""
    last_in = logits.gather(-1, chosen).amin(dim=-1)
    first_out = logits.scatter(-1, chosen, -torch.inf).amax(dim=-1)
    near: torch.Tensor = last_in - first_out <= WIDTH * tolerance * logits.norm(dim=-1)
    return near
