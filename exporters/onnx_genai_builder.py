"""onnxruntime-genai's model builder, run as its own documentation runs it: as a program.

Not imported: its modules are called `builders` and `quantization` at the top level once they are, it prints much, holds
the model in memory, and its functions change with every release, where its command line stays.
"""

from __future__ import annotations

import os
import subprocess
import sys
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

from alignez_bake.errors import BadInputError

if TYPE_CHECKING:
    from pathlib import Path

GRAPH_FILE: Final = "model.onnx"
BUILT_FILES: Final = (GRAPH_FILE, "model.onnx.data", "genai_config.json")
"""What it writes beside the tokenizer."""

# A cache that keeps no more than a window refuses generations shorter than it.
_OPTIONS: Final = ("windowed_kv_cache=false",)
_LAST_LINES: Final = 3


def build(checkpoint: Path, out: Path) -> None:
    """Build the graph of a checkpoint for the CPU, in float32; nothing is fetched.

    Args:
        checkpoint: an ordinary model folder.
        out: a folder that is there; files of the same names are written over.

    Raises:
        BadInputError: the builder fails, with its last words, or leaves no graph.
    """
    with TemporaryDirectory(prefix=".builder-", dir=checkpoint.parent) as cache:
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
        command += ["-i", str(checkpoint), "-o", str(out), "-p", "fp32", "-e", "cpu", "-c", cache]
        command += ["--extra_options", *_OPTIONS]
        offline = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        done = subprocess.run(command, env=offline, capture_output=True, text=True, check=False)  # noqa: S603 - our own
    missing = [name for name in BUILT_FILES if not (out / name).is_file()]
    if done.returncode or missing:
        words = " ".join(done.stderr.split("\n")[-_LAST_LINES - 1 :]).strip() or f"no {', '.join(missing)}"
        raise BadInputError(f"onnxruntime-genai's builder made no graph ({words}): use --as onnx")
