"""What runs: models in torch and graphs, each reading a prompt and writing one token after the other, on one thread."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import onnxruntime
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from alignez_bake.language_model.kv_cache import cache_name
from alignez_bake.lowering.hooks import edited_by_hooks
from alignez_bake.runtime.decoder import Decoder
from alignez_bake.runtime.providers import asked_providers
from alignez_bake.runtime.session import OnnxModel
from alignez_bake.runtime.signature import read_signature
from alignez_bake.runtime.value_info import session_argument

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from alignez_bake.edit_plan import EditPlan
    from alignez_bake.model_folder import ModelFolder


class Subject(Protocol):
    """Something that generates greedily."""

    def start(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Read a prompt [batch, tokens] into a new cache and choose the first token.

        Returns:
            Logits of the last position, [batch, vocabulary].
        """
        ...

    def token(self) -> None:
        """Write one token more in every row; over when it is known."""
        ...


class TorchSubject:
    """A transformers model, eager, with hooks or without."""

    def __init__(self, checkpoint: Path, device: str, hooks: tuple[ModelFolder, EditPlan] | None = None) -> None:
        """Load it; hooks stay for good."""
        self._model = AutoModelForCausalLM.from_pretrained(checkpoint).eval().to(device)
        self._stack = ExitStack()
        if hooks is not None:
            base, plan = hooks
            self._stack.enter_context(edited_by_hooks(self._model, base.architecture, plan))

    def start(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """See `Subject`."""
        tokens = torch.from_numpy(ids).to(self._model.device)
        self._cache: Any = DynamicCache(config=self._model.config)
        self._positions = torch.arange(tokens.shape[1], device=tokens.device)[None].expand(len(tokens), -1)
        return self._step(tokens).float().cpu().numpy()

    def token(self) -> None:
        """See `Subject`."""
        self._positions = self._positions[:, -1:] + 1
        self._step(self._next)

    @torch.no_grad()
    def _step(self, ids: torch.Tensor) -> torch.Tensor:
        cache = {cache_name(self._model): self._cache}
        output = self._model(input_ids=ids, position_ids=self._positions, use_cache=True, logits_to_keep=1, **cache)
        last: torch.Tensor = output.logits[:, -1]
        self._next = last.argmax(-1, keepdim=True)
        if last.is_cuda:
            torch.cuda.synchronize()
        return last


class GraphSubject:
    """A graph with a cache, ours or optimum's, by our runner."""

    def __init__(self, graph: Path, device: str) -> None:
        """Open it on one thread."""
        asked = asked_providers(["cpu"] if device == "cpu" else [device, "cpu"], onnxruntime.get_available_providers())
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(graph, options, providers=[one.argument() for one in asked])
        inputs, outputs = (
            tuple(map(session_argument, values)) for values in (session.get_inputs(), session.get_outputs())
        )
        self._model = OnnxModel(graph, session, read_signature(inputs, outputs, str(graph)), asked[0], None)

    def start(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """See `Subject`."""
        self._decoder = Decoder(self._model, len(ids))
        self._mask = np.ones_like(ids)
        self._positions = np.tile(np.arange(ids.shape[1]), (len(ids), 1))
        return self._step(ids).astype(np.float32)

    def token(self) -> None:
        """See `Subject`."""
        self._mask = np.concatenate((self._mask, np.ones_like(self._next)), axis=1)
        self._positions = self._positions[:, -1:] + 1
        self._step(self._next)

    def _step(self, ids: NDArray[np.int64]) -> NDArray[Any]:
        last = self._decoder.step({"input_ids": ids, "attention_mask": self._mask, "position_ids": self._positions})
        self._next = last.argmax(-1)[:, None]
        return last


class GenaiSubject:
    """onnxruntime-genai's own loop."""

    def __init__(self, folder: Path, room: int) -> None:
        """Open a folder on one thread; `room`: most tokens of a row, the cache being made for all of them at once."""
        import onnxruntime_genai  # noqa: PLC0415 - comes with an extra

        file = folder / "genai_config.json"
        config = json.loads(file.read_text(encoding="utf-8"))
        config["model"]["decoder"].setdefault("session_options", {})["intra_op_num_threads"] = 1
        file.write_text(json.dumps(config), encoding="utf-8")
        self._genai, self._room = onnxruntime_genai, room
        self._model = onnxruntime_genai.Model(str(folder))

    def start(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """See `Subject`."""
        settings = self._genai.GeneratorParams(self._model)
        # No row may end early: a stop token would shorten what is timed.
        settings.set_search_options(max_length=self._room, min_length=self._room, batch_size=len(ids), do_sample=False)
        self._generator = self._genai.Generator(self._model, settings)
        self._generator.append_tokens(ids.astype(np.int32))
        last: NDArray[np.float32] = self._generator.get_logits().astype(np.float32)
        self._generator.generate_next_token()
        return last.reshape(len(ids), -1)

    def token(self) -> None:
        """See `Subject`."""
        self._generator.generate_next_token()
