"""The most memory that one subject needs to generate, in a process of its own.

    python -m benchmarks.onnx_memory NAME FOLDER BATCH PREFILL DECODE

`FOLDER` is the one that `benchmarks.onnx` made; prints one line of JSON: bytes above what was resident when the
imports were done.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from alignez_bake.model_folder import open_model_folder
from benchmarks.onnx_folder import open_subject
from benchmarks.onnx_running import prompt
from benchmarks.peak_memory import peak, reset_peak


def main(name: str, folder: Path, batch: int, prefill: int, decode: int) -> None:
    """Generate, and print what that needed."""
    torch.set_num_threads(1)
    vocabulary = int(open_model_folder(folder / "base").config["vocab_size"])
    room = prefill + 1 + decode  # the prompt gives one token, too
    open_subject(name, folder / "warm", "cpu", room).start(prompt(256, 1, 4))
    before = reset_peak()
    subject = open_subject(name, folder, "cpu", room)
    subject.start(prompt(vocabulary, batch, prefill))
    for _ in range(decode):
        subject.token()
    print(json.dumps({"bytes": peak() - before}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:]))
