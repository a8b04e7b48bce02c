"""The demo's base run in float32: what its maps read, and what rounded weights make of its logits."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from alignez_bake.language_model.loading import LanguageModel
    from benchmarks.world_folder import WorldFolder

_DOCUMENTS = 120


def texts_of(lm: LanguageModel, world: WorldFolder) -> list[torch.Tensor]:
    """Ids [1, T] of good documents and neutral texts, in turns."""
    documents = [entry["query"] + entry["answer"] for entry in world.good_documents[:_DOCUMENTS]]
    texts = [*documents, *world.neutral[:_DOCUMENTS]]
    return [torch.tensor([lm.tokenizer(text)["input_ids"]]) for text in texts]


def inputs_of_writers(lm: LanguageModel, world: WorldFolder, places: Sequence[str]) -> dict[str, NDArray[np.float32]]:
    """What maps read at every token of those texts: Z [d_in, tokens] by module path."""
    found: dict[str, list[torch.Tensor]] = {place: [] for place in places}

    def keep(place: str) -> Callable[[object, tuple[torch.Tensor, ...]], None]:
        return lambda _, inputs: found[place].append(inputs[0].detach().float().flatten(0, 1))

    handles = [lm.model.get_submodule(place).register_forward_pre_hook(keep(place)) for place in places]
    try:
        with torch.inference_mode():
            for ids in texts_of(lm, world):
                lm.model(ids)
    finally:
        for handle in handles:
            handle.remove()
    return {place: torch.cat(rows).T.numpy() for place, rows in found.items()}


class LogitsUnder:
    """The logits of a base whose maps have given weights, everything in float32."""

    def __init__(self, lm: LanguageModel, world: WorldFolder) -> None:
        """Cast the model to float32, in place."""
        self._model = lm.model.float()
        self._texts = texts_of(lm, world)

    def __call__(self, weights: Mapping[str, NDArray[np.float32]]) -> torch.Tensor:
        """Log-probabilities [tokens, vocabulary], float64; by module path the weights in place of the base's."""
        with torch.inference_mode(), self._with(weights):
            logits = torch.cat([self._model(ids).logits[0] for ids in self._texts])
            return logits.double().log_softmax(dim=-1)

    @contextmanager
    def _with(self, weights: Mapping[str, NDArray[np.float32]]) -> Iterator[None]:
        kept = {}
        for place, values in weights.items():
            module = self._model.get_submodule(place)
            kept[place] = module.weight.data
            module.weight.data = torch.from_numpy(values)
        try:
            yield
        finally:
            for place, values in kept.items():
                self._model.get_submodule(place).weight.data = values
