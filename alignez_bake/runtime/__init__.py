"""Runs an ONNX graph with a key-value cache: numpy and ONNX Runtime alone, no torch, no transformers.

    model = open_session(Path("OUT"), ["cuda", "cpu"])
    answers = generate(model, [[1, 5, 9], [1, 7]], max_new_tokens=64, stop_ids=[2])

Providers are said, never guessed, and nothing falls back to another one unless that one was asked for too.
"""

from alignez_bake.runtime.choose import Sampling
from alignez_bake.runtime.generate import generate, stream
from alignez_bake.runtime.session import OnnxModel, open_session

__all__ = ["OnnxModel", "Sampling", "generate", "open_session", "stream"]
