"""From the residual stream behind the last layer to the next token: the final norm and the head."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import torch

from alignez_bake.errors import BadInputError
from alignez_bake.language_model.batching import right_padded

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from alignez_bake.language_model.loading import LanguageModel

_WIDENED_VALUES: Final = 2**24
"""Of the head's weight at a time, 64 MiB in float32."""
_ROUNDINGS: Final = 16
"""Norm, head and what lies between round a handful of times in the model's own dtype; each by half of an epsilon."""


class Reads(Protocol):
    """From rows of some width to log-probabilities of the next token, differentiably.

    Attributes:
        device: where it computes.
        dtype: in which.
        vocabulary_size: how many tokens it tells apart.
    """

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    @property
    def dtype(self) -> torch.dtype:
        """In which."""

    @property
    def vocabulary_size(self) -> int:
        """How many tokens it tells apart."""

    def log_probabilities(self, rows: torch.Tensor, /) -> torch.Tensor:
        """log p(next token) [n, vocabulary] of rows [n, d]."""


@dataclass(frozen=True, eq=False)
class Head:
    """Log-probabilities of the next token as a function of what the final norm gives.

    Attributes:
        weight: [vocabulary, d], the model's own, in its dtype: a copy in float32 would take 2 GB of an 8 B model.
        bias: [vocabulary], or None.
        dtype: of the arithmetic.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    dtype: torch.dtype

    @property
    def device(self) -> torch.device:
        """Where the weight lies."""
        return self.weight.device

    @property
    def vocabulary_size(self) -> int:
        """How many tokens it tells apart."""
        return len(self.weight)

    def log_probabilities(self, normed: torch.Tensor, /) -> torch.Tensor:
        """log p(next token) [n, vocabulary] of normed rows [n, d], in `dtype`."""
        logits = _Product.apply(normed, self.weight)  # type: ignore[no-untyped-call]
        assert isinstance(logits, torch.Tensor)
        return (logits if self.bias is None else logits + self.bias.to(self.dtype)).log_softmax(dim=-1)

    @torch.no_grad()
    def times(self, columns: NDArray[np.float64]) -> NDArray[np.float64]:
        """H C [vocabulary, k] of the weight H and columns C [d, k], in float64."""
        factor = torch.tensor(columns, device=self.device)
        parts = [part.double() @ factor for part in torch.split(self.weight, _rows_at_a_time(self.weight))]
        product: NDArray[np.float64] = torch.cat(parts).cpu().numpy()
        return product


class _Product(torch.autograd.Function):
    """x Wᵀ for a W of narrower dtype, widened a part at a time, forwards and back; W itself gets no gradient."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:  # noqa: ANN401 - torch's context
        """[n, d] and [vocabulary, d] to [n, vocabulary]."""
        ctx.save_for_backward(weight)
        if weight.dtype == rows.dtype:
            return rows @ weight.T
        parts = torch.split(weight, _rows_at_a_time(weight))
        return torch.cat([rows @ part.to(rows.dtype).T for part in parts], dim=-1)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # noqa: ANN401 - as above
        """[n, vocabulary] to [n, d]."""
        (weight,) = ctx.saved_tensors
        if weight.dtype == gradient.dtype:
            return gradient @ weight, None
        size = _rows_at_a_time(weight)
        total = gradient.new_zeros(len(gradient), weight.shape[1])
        for columns, part in zip(torch.split(gradient, size, dim=-1), torch.split(weight, size), strict=True):
            total += columns @ part.to(gradient.dtype)
        return total, None


def _rows_at_a_time(weight: torch.Tensor) -> int:
    return max(1, _WIDENED_VALUES // weight.shape[1])


class Readout:
    """Log-probabilities of the next token as a differentiable function of the residual stream.

    State: a copy of the final norm in `dtype`, and the model's own head.

    Attributes:
        device: where it computes.
        dtype: in which; float64 for models in float64, else float32.
        vocabulary_size: how many tokens it tells apart.
        last_layer: number of the layer behind which it reads.
        tied: whether the head is the token embedding as well.
        head: what stands behind the norm.
    """

    def __init__(self, lm: LanguageModel) -> None:
        """Copy what a model reads out by, without hooks of its own on it."""
        self.device = lm.device
        self.dtype = torch.promote_types(lm.model.dtype, torch.float32)
        self.last_layer = lm.folder.num_layers - 1
        self.vocabulary_size = lm.vocabulary_size
        self.tied = lm.architecture.is_tied(lm.folder.config)
        self._norm: nn.Module = copy.deepcopy(lm.model.get_submodule(lm.architecture.final_norm)).to(self.dtype)
        head = lm.model.get_output_embeddings()
        self.head = Head(head.weight.detach(), None if head.bias is None else head.bias.detach(), self.dtype)

    def log_probabilities(self, stream: torch.Tensor, /) -> torch.Tensor:
        """log p(next token) [n, vocabulary] of rows of the residual stream [n, d], both in `dtype`."""
        return self.head.log_probabilities(self.normed(stream))

    def normed(self, stream: torch.Tensor) -> torch.Tensor:
        """What the head reads [n, d] of rows of the residual stream [n, d]."""
        normed: torch.Tensor = self._norm(stream)
        return normed


def checked_readout(lm: LanguageModel, sequence: Sequence[int]) -> Readout:
    """The readout of a model, compared with what the model itself predicts.

    Args:
        lm: the model, without edits.
        sequence: token ids to compare on.

    Raises:
        BadInputError: more than a norm and a head stand behind the last layer, such as a soft cap on the logits or a
            factor, so that both predict otherwise.
    """
    readout = Readout(lm)
    stream: list[torch.Tensor] = []

    def keep(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        stream.append(args[0])

    batch = right_padded([sequence], lm.pad_id, lm.device)
    hook = lm.model.get_submodule(lm.architecture.final_norm).register_forward_pre_hook(keep)
    try:
        with torch.inference_mode():
            predicted = lm.model(**batch._asdict(), use_cache=False).logits[0].to(readout.dtype)
            found = readout.log_probabilities(stream[0].reshape(-1, stream[0].shape[-1]).to(readout.dtype))
    finally:
        hook.remove()
    allowed = _ROUNDINGS * torch.finfo(lm.model.dtype).eps * float(predicted.abs().max())
    difference = float((found - predicted.log_softmax(dim=-1)).abs().max())
    if not difference <= allowed:
        raise BadInputError(
            f"the predictions of {lm.architecture.model_type} are not those of its last norm and its head: they differ "
            f"by {difference:.3g} in log-probability, where rounding allows {allowed:.3g}; use residual_ridge or ridge"
        )
    return readout
