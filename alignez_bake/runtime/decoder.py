"""One forward call after the other, with the cache left where the provider computes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from alignez_bake.errors import BadInputError
from alignez_bake.runtime.host_memory import read_logits
from alignez_bake.runtime.providers import runtime_errors, runtime_package

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from alignez_bake.runtime.session import OnnxModel


class Decoder:
    """A batch on its way through the graph; its cache begins empty.

    Tokens go from the host to the device and logits come back; keys and values are given from one call to the
    next as the values that ONNX Runtime allocated on the device, and numpy never sees them.
    """

    def __init__(self, model: OnnxModel, batch: int) -> None:
        """Begin with an empty cache of `batch` rows."""
        self._model = model
        self._batch = batch
        self._length = 0
        self._device = (model.provider.kind.device, model.provider.device_id)
        empty = runtime_package().OrtValue.ortvalue_from_shape_and_type
        self._cache = [
            empty(tensor.shape(batch, 0), tensor.element_type, *self._device) for tensor in model.signature.cache
        ]

    def step(self, tokens: Mapping[str, NDArray[np.int64]]) -> NDArray[Any]:
        """Run the graph on the next tokens.

        Args:
            tokens: the inputs of `TOKEN_INPUTS` by name, int64: `input_ids` and `position_ids` [batch, new],
                `attention_mask` [batch, past + new]; those that the graph lacks are left out here.

        Returns:
            Logits of the last position, [batch, vocabulary], of the graph's own dtype; bfloat16 as float32.

        Raises:
            BadInputError: ONNX Runtime fails, the cache does not grow by the new tokens, or logits that are not
                finite.
        """
        last = read_logits(self._forward(tokens), str(self._model.path), last=True)
        self._check_finite(last)
        return last

    def step_with_all_logits(self, tokens: Mapping[str, NDArray[np.int64]]) -> NDArray[Any]:
        """As `step`, with the logits of every new position, [batch, new, vocabulary]; those at padding say nothing."""
        values = read_logits(self._forward(tokens), str(self._model.path), last=False)
        self._check_finite(values[:, -1])
        return values

    def _forward(self, tokens: Mapping[str, NDArray[np.int64]]) -> Any:  # noqa: ANN401 - an OrtValue, which has no stubs
        """Run the graph, keep the cache that it gives, and return the logits on the host."""
        signature, path = self._model.signature, self._model.path
        binding = self._model.session.io_binding()
        for name in signature.tokens:
            binding.bind_cpu_input(name, np.ascontiguousarray(tokens[name]))
        for tensor, past in zip(signature.cache, self._cache, strict=True):
            binding.bind_ortvalue_input(tensor.past, past)
        binding.bind_output("logits", "cpu")
        for tensor in signature.cache:
            binding.bind_output(tensor.present, *self._device)
        try:
            # Copies to and from a GPU run on streams of their own: before the run they must have come, and after it.
            binding.synchronize_inputs()
            self._model.session.run_with_iobinding(binding)
            binding.synchronize_outputs()
        except runtime_errors() as error:
            raise BadInputError(f"{path}: ONNX Runtime failed ({' '.join(str(error).split())})") from error
        logits, *self._cache = binding.get_outputs()
        if self._length == 0:
            self._check_device()
        self._length += tokens["input_ids"].shape[1]
        self._check_cache()
        return logits

    def _check_finite(self, last: NDArray[Any]) -> None:
        """The maximum is NaN if anything is, and -inf only if all are: tokens that a graph rules out may be -inf."""
        if not np.isfinite(last.max(axis=-1)).all():
            raise BadInputError(
                f"{self._model.path}: logits are not finite after {self._length} tokens: the weights overflow"
            )

    def _check_cache(self) -> None:
        """A cache that is dropped, or returned without its past, gives fluent nonsense instead of an error."""
        for tensor, present in zip(self._model.signature.cache, self._cache, strict=True):
            wanted, found = tensor.shape(self._batch, self._length), present.shape()
            if found != wanted:
                raise BadInputError(
                    f"{self._model.path}: {tensor.present} has the shape {found} after {self._length} tokens, and "
                    f"{wanted} is the past with the new tokens behind it: export the model again"
                )

    def _check_device(self) -> None:
        """Once: what ONNX Runtime did with the first outputs it does with all, and asking takes time."""
        for tensor, present in zip(self._model.signature.cache, self._cache, strict=True):
            if present.device_name() != self._device[0]:
                raise BadInputError(
                    f"{self._model.path}: {tensor.present} lies on {present.device_name()}, and the cache of "
                    f"{self._model.provider.kind.runtime_name} belongs on {self._device[0]}"
                )
