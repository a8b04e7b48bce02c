"""From the residual stream behind the last layer to the next token: the final norm and the head."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import torch

from alignez_bake.errors import BadInputError
from alignez_bake.language_model.batching import right_padded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from alignez_bake.language_model.loading import LanguageModel

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
        module: the linear map.
        dtype: of its weight.
        device: where that lies.
        vocabulary_size: how many tokens it tells apart.
    """

    module: nn.Module
    dtype: torch.dtype
    device: torch.device
    vocabulary_size: int

    def log_probabilities(self, normed: torch.Tensor, /) -> torch.Tensor:
        """log p(next token) [n, vocabulary] of normed rows [n, d], in `dtype`."""
        logits: torch.Tensor = self.module(normed)
        return logits.log_softmax(dim=-1)

    @property
    def weight(self) -> torch.Tensor:
        """[vocabulary, d]."""
        weight = self.module.weight
        assert isinstance(weight, torch.Tensor)
        return weight.detach()


class Readout:
    """Log-probabilities of the next token as a differentiable function of the residual stream.

    State: copies of the final norm and of the head in `dtype`, 4 · vocabulary · d bytes where that is float32.

    Attributes:
        device: where it computes.
        dtype: in which; float64 for models in float64, else float32.
        vocabulary_size: how many tokens it tells apart.
        last_layer: number of the layer behind which it reads.
        tied: whether the head is the token embedding as well.
    """

    def __init__(self, lm: LanguageModel) -> None:
        """Copy what a model reads out by, without hooks of its own on it."""
        self.device = lm.device
        self.dtype = torch.promote_types(lm.model.dtype, torch.float32)
        self.last_layer = lm.folder.num_layers - 1
        self.vocabulary_size = lm.vocabulary_size
        self.tied = lm.architecture.is_tied(lm.folder.config)
        self._norm: nn.Module = copy.deepcopy(lm.model.get_submodule(lm.architecture.final_norm)).to(self.dtype)
        self._head: nn.Module = copy.deepcopy(lm.model.get_output_embeddings()).to(self.dtype)

    def log_probabilities(self, stream: torch.Tensor, /) -> torch.Tensor:
        """log p(next token) [n, vocabulary] of rows of the residual stream [n, d], both in `dtype`."""
        return self.head.log_probabilities(self.normed(stream))

    def normed(self, stream: torch.Tensor) -> torch.Tensor:
        """What the head reads [n, d] of rows of the residual stream [n, d]."""
        normed: torch.Tensor = self._norm(stream)
        return normed

    @property
    def head(self) -> Head:
        """The head alone, behind the norm."""
        return Head(self._head, self.dtype, self.device, self.vocabulary_size)


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
