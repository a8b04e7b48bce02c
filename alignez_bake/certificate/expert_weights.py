"""What a router ranks its experts by, and how it weighs those that it is given.

With its weight G [E, d], its bias and its input h, a router computes logits l = G h (+ bias), and scores by which it
ranks all E experts. S is a set of k experts, the best ones or given ones; the weight of e in S is

| routing | scores | weight of e |
|---|---|---|
| `softmax` (mixtral, qwen3_moe) | l | softmax(l)_e over all experts, in qwen3_moe perhaps not divided |
| `softmax_of_chosen` (gpt_oss) | l | softmax of l over S alone |
| `sigmoid` (deepseek_v3) | σ(l) + a bias that only the choice sees | σ(l)_e, perhaps not divided, times a factor |

divided by its sum over S where nothing else is said: in the dtypes and the order of transformers' modules, so that
under the router's own choice the bits are the same. The scores hold all that the choice depends on, but how many
experts of how many groups are taken, which config.json says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch
    from torch import nn

    from alignez_bake.architectures.architecture import Routing


class RouterFormula(NamedTuple):
    """One kind of router.

    Attributes:
        scores: of (module, h): scores of all experts, [rows, experts].
        weights: of (module, h, chosen): weights of chosen experts, [rows, k], in the dtype that the module gives.
    """

    scores: Callable[[nn.Module, torch.Tensor], torch.Tensor]
    weights: Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]


def _logits(router: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    weight = router.get_parameter("weight")
    bias = getattr(router, "bias", None)
    return functional.linear(hidden.reshape(-1, weight.shape[1]), weight, bias)


def _logits_in_float32(router: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    weight = router.get_parameter("weight").float()
    return functional.linear(hidden.reshape(-1, weight.shape[1]).float(), weight)


def _softmax(router: nn.Module, hidden: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    weights = _logits(router, hidden).float().softmax(dim=-1).gather(-1, chosen)
    # mixtral has no such switch: it always divides.
    return weights / weights.sum(dim=-1, keepdim=True) if getattr(router, "norm_topk_prob", True) else weights


def _softmax_of_chosen(router: nn.Module, hidden: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    return _logits(router, hidden).gather(-1, chosen).softmax(dim=-1)


def _sigmoid_and_bias(router: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    return _logits_in_float32(router, hidden).sigmoid() + router.get_buffer("e_score_correction_bias")


def _sigmoid(router: nn.Module, hidden: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    weights = _logits_in_float32(router, hidden).sigmoid().gather(-1, chosen)
    if router.norm_topk_prob:
        weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
    factor = router.routed_scaling_factor
    assert isinstance(factor, float | int)
    return weights * factor


ROUTERS: Final[Mapping[Routing, RouterFormula]] = {
    "softmax": RouterFormula(_logits, _softmax),
    "softmax_of_chosen": RouterFormula(_logits, _softmax_of_chosen),
    "sigmoid": RouterFormula(_sigmoid_and_bias, _sigmoid),
}
