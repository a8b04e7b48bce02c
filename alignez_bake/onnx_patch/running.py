"""Runs a graph and looks at values inside of it, which is how a patch is proved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from alignez_bake.errors import BadInputError
from alignez_bake.runtime.providers import asked_providers, check_started, runtime_errors, runtime_package

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from alignez_bake.runtime.signature import Signature

    Float64Array = NDArray[np.float64]

_FLOAT = 1
_PLAIN = (1, 11)  # float32 and float64, which numpy takes from ONNX Runtime as they are


class Prompt(NamedTuple):
    """A batch that is run in two calls, the second behind the cache of the first.

    Attributes:
        ids: int64 [batch, first + second].
        mask: likewise; 0 at padding, which is on the left.
        second: how many tokens the second call takes.
    """

    ids: NDArray[np.int64]
    mask: NDArray[np.int64]
    second: int

    def calls(self) -> list[dict[str, NDArray[np.int64]]]:
        """What each call is given, by the names of inputs."""
        positions = np.maximum(self.mask.cumsum(axis=1) - 1, 0)
        cut, length = self.ids.shape[1] - self.second, self.ids.shape[1]
        return [
            {
                "input_ids": np.ascontiguousarray(self.ids[:, start:end]),
                "attention_mask": np.ascontiguousarray(self.mask[:, :end]),
                "position_ids": np.ascontiguousarray(positions[:, start:end]),
            }
            for start, end in ((0, cut), (cut, length))
        ]

    def real(self, call: int) -> NDArray[np.bool_]:
        """Where the tokens of a call are no padding, [batch, tokens]."""
        cut = self.ids.shape[1] - self.second
        return (self.mask[:, :cut] if call == 0 else self.mask[:, cut:]).astype(bool)


def prompts_for(vocabulary: int, longest: int, *, padded: bool, several: bool) -> tuple[Prompt, ...]:
    """One sequence alone, and four of different lengths together, of random tokens.

    Args:
        vocabulary: ids lie below it.
        longest: most tokens of a sequence that the model has room for.
        padded: whether the graph takes a mask, so that lengths may differ.
        several: whether the graph takes several new tokens behind a filled cache; graphs of onnxruntime-genai's builder
            may take one.
    """
    rng = np.random.default_rng(0)
    prompts = []
    for lengths in ((12,), (9, 6, 4, 4) if padded else (9, 9, 9, 9)):
        columns = min(max(lengths), longest)
        ids = rng.integers(0, vocabulary, size=(len(lengths), columns))
        mask = np.zeros_like(ids)
        for row, length in enumerate(lengths):
            mask[row, columns - min(length, columns) :] = 1
        prompts.append(Prompt(ids, mask, 3 if several else 1))
    return tuple(prompts)


class Watched:
    """A session of a graph with values of its inside as further outputs."""

    def __init__(
        self,
        model: Any,  # noqa: ANN401 - a ModelProto
        path: Path,
        watched: Mapping[str, int],
        signature: Signature,
        device: str,
    ) -> None:
        """Open it.

        Args:
            model: of the graph; it is left as it is.
            path: its file, beside which external data lie.
            watched: names of values to look at, with their numbers of TensorProto.DataType.
            signature: of the graph.
            device: "cpu", "cuda", "cuda:1", ...

        Raises:
            BadInputError: ONNX Runtime is missing, has no such device, or cannot run the graph.
        """
        place = str(path)
        runtime = runtime_package()
        names = [device] if device == "cpu" else [device, "cpu"]
        providers = asked_providers(names, runtime.get_available_providers())
        options = runtime.SessionOptions()
        options.log_severity_level = 4  # its errors are raised
        # Exporters give one name to axes that are not the same length, by which buffers would be shared.
        options.enable_mem_reuse = False
        # Packed weights are a second copy of all of them, which four short runs do not pay for.
        options.add_session_config_entry("session.disable_prepacking", "1")
        # Threads that wait in a loop take the processor from whatever else runs on the machine.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # The graph is given as bytes, since the file has not these outputs.
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(path.parent.resolve())
        )
        self._value, self._place, self._signature = runtime.OrtValue, place, signature
        message, self._outputs = _with_outputs(model, watched)
        try:
            self._session = runtime.InferenceSession(
                message, options, providers=[entry.argument() for entry in providers], enable_fallback=0
            )
        except runtime_errors() as error:
            raise BadInputError(
                f"{place}: ONNX Runtime {runtime.__version__} cannot run it ({' '.join(str(error).split())}); "
                "--verify tensors compares the files alone"
            ) from error
        check_started(providers, self._session.get_providers(), place)

    def run(self, prompt: Prompt) -> list[dict[str, Float64Array]]:
        """The watched values and `logits` of both calls, in float64.

        Raises:
            BadInputError: ONNX Runtime fails.
        """
        batch, found = len(prompt.ids), []
        cache = {
            tensor.past: self._value.ortvalue_from_shape_and_type(tensor.shape(batch, 0), tensor.element_type, "cpu", 0)
            for tensor in self._signature.cache
        }
        for tokens in prompt.calls():
            feeds = {
                name: self._value.ortvalue_from_numpy(values)
                for name, values in tokens.items()
                if name in self._signature.tokens
            }
            presents = [tensor.present for tensor in self._signature.cache]
            names = ["logits", *self._outputs.values(), *presents]
            try:
                values = self._session.run_with_ort_values(names, {**feeds, **cache})
            except runtime_errors() as error:
                raise BadInputError(f"{self._place}: ONNX Runtime failed ({' '.join(str(error).split())})") from error
            by_name = dict(zip(("logits", *self._outputs), values, strict=False))
            found.append({name: value.numpy().astype(np.float64) for name, value in by_name.items()})
            cache = dict(zip((tensor.past for tensor in self._signature.cache), values[-len(presents) :], strict=True))
        return found


def _with_outputs(model: Any, watched: Mapping[str, int]) -> tuple[bytes, dict[str, str]]:  # noqa: ANN401
    """The model with further outputs, and the output of each value: itself, or a Cast of what numpy does not know."""
    import onnx  # noqa: PLC0415 - comes with an extra

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    present = {value.name for value in (*copy.graph.output, *copy.graph.input)}
    outputs: dict[str, str] = {}
    for name, data_type in watched.items():
        outputs[name] = name
        if data_type not in _PLAIN:
            outputs[name] = f"{name}/watched"
            copy.graph.node.append(onnx.helper.make_node("Cast", [name], [outputs[name]], to=_FLOAT))
        kind = data_type if data_type in _PLAIN else _FLOAT
        if outputs[name] not in present:
            copy.graph.output.append(onnx.helper.make_tensor_value_info(outputs[name], kind, None))
    return copy.SerializeToString(), outputs


def relative_error(found: Sequence[Float64Array], expected: Sequence[Float64Array]) -> float:
    """‖found - expected‖ / ‖expected‖ over all arrays; the largest float stands for an infinite or undefined one."""
    difference = np.sqrt(sum(float(np.sum((a - b) ** 2)) for a, b in zip(found, expected, strict=True)))
    norm = np.sqrt(sum(float(np.sum(b**2)) for b in expected))
    with np.errstate(divide="ignore", invalid="ignore"):
        error = float(difference / norm)
    return error if np.isfinite(error) else float(np.finfo(np.float64).max)
