"""optimum's export of a checkpoint, run by the python of optimum's own environment.

    .venv-optimum/bin/python -m benchmarks.onnx_optimum WARM_CHECKPOINT WARM_OUT CHECKPOINT OUT

Needs optimum and nothing of ours. Arguments and output as those of `benchmarks.onnx_made`.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from optimum.exporters.onnx import main_export

from benchmarks.peak_memory import peak, reset_peak


def main(warm: Path, warm_out: Path, checkpoint: Path, out: Path) -> None:
    """Export and print what it took."""
    torch.set_num_threads(1)
    _export(warm, warm_out)
    before, wall, processor = reset_peak(), time.perf_counter(), time.process_time()
    _export(checkpoint, out)
    seconds = {"seconds": time.perf_counter() - wall, "processor": time.process_time() - processor}
    print(json.dumps({**seconds, "bytes": peak() - before}))


def _export(checkpoint: Path, out: Path) -> None:
    # Without its own check against torch, which is no part of an export here either.
    main_export(str(checkpoint), out, task="text-generation-with-past", do_validation=False)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
