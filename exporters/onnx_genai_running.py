"""A folder of onnxruntime-genai in its own runtime: logits of prompts, greedy and sampled tokens."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from alignez_bake.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray


@dataclass(frozen=True)
class GenaiModel:
    """An open folder.

    Attributes:
        folder: with `genai_config.json`.
        model: onnxruntime-genai's `Model`, which has no stubs.
        ends: tokens that end a text.
    """

    folder: Path
    model: Any
    ends: frozenset[int]

    def logits(self, prompts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Logits of every token of equally long prompts, [prompts, length, vocabulary]."""
        generator = self._started(prompts, new_tokens=1)
        logits: NDArray[np.float32] = generator.get_output("logits")
        return logits

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        new_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[list[int]]:
        """Continue equally long prompts.

        Args:
            prompts: token ids.
            new_tokens: most tokens of an answer.
            temperature: 0 is greedy.
            seed: of the samples.

        Returns:
            For each prompt its new tokens, up to and without one of `ends`.
        """
        generator = self._started(prompts, new_tokens=new_tokens, temperature=temperature, seed=seed)
        while not generator.is_done():
            generator.generate_next_token()
        rows = [generator.get_sequence(row)[len(prompt) :].tolist() for row, prompt in enumerate(prompts)]
        return [until(row, self.ends) for row in rows]

    def _started(
        self, prompts: Sequence[Sequence[int]], *, new_tokens: int, temperature: float = 0.0, seed: int = 0
    ) -> Any:  # noqa: ANN401 - onnxruntime-genai's `Generator`
        """A generator that has read the prompts.

        Raises:
            BadInputError: prompts of several lengths, which onnxruntime-genai would pad on the left.
        """
        import onnxruntime_genai  # noqa: PLC0415 - comes with an extra

        lengths = {len(prompt) for prompt in prompts}
        if len(lengths) != 1 or 0 in lengths:
            raise BadInputError(
                f"prompts of {sorted(lengths)} tokens in one batch: onnxruntime-genai's graphs take equally long ones"
            )
        parameters = onnxruntime_genai.GeneratorParams(self.model)
        options: dict[str, float] = {"batch_size": len(prompts), "max_length": lengths.pop() + new_tokens}
        if temperature:
            options |= {"temperature": temperature, "top_k": 0, "random_seed": seed}
        parameters.set_search_options(do_sample=bool(temperature), **options)
        generator = onnxruntime_genai.Generator(self.model, parameters)
        generator.append_tokens(np.array(prompts, dtype=np.int32))
        return generator


def open_genai(folder: Path) -> GenaiModel:
    """Open a folder.

    Raises:
        BadInputError: onnxruntime-genai cannot load it.
    """
    import onnxruntime_genai  # noqa: PLC0415 - comes with an extra

    try:
        config = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))
        model = onnxruntime_genai.Model(str(folder))
    except (OSError, ValueError, RuntimeError) as error:
        raise BadInputError(f"{folder} is no folder that onnxruntime-genai loads: {error}") from error
    ends = config["model"]["eos_token_id"]
    return GenaiModel(folder, model, frozenset(ends if isinstance(ends, list) else [ends]))


def until(tokens: Sequence[int], ends: frozenset[int]) -> list[int]:
    """Tokens up to and without the first that ends a text."""
    end = next((index for index, token in enumerate(tokens) if token in ends), len(tokens))
    return list(tokens[:end])
