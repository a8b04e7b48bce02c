"""One artefact of a checkpoint, made in a process of its own, so that time and memory are its alone.

    python -m benchmarks.onnx_made KIND WARM_CHECKPOINT WARM_OUT CHECKPOINT OUT

The same is made of a tiny checkpoint first, so that what is loaded once is loaded before the clock runs. Prints one
line of JSON: seconds on the clock and of the processor, and bytes above what was resident before.
"""

from __future__ import annotations

import json
import runpy
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

import torch
from transformers import AutoModelForCausalLM

from alignez_bake.model_folder import read_config
from alignez_bake.onnx_export.graph import export_graph
from alignez_bake.onnx_optimise.optimise import optimise_graph
from benchmarks.peak_memory import peak, reset_peak

if TYPE_CHECKING:
    from collections.abc import Callable

GRAPH: Final = "model.onnx"


def write_graph(checkpoint: Path, out: Path) -> None:
    """Our export, weights in a file of their own."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    export_graph(model, out / GRAPH, external_data=True)


def write_optimised(checkpoint: Path, out: Path) -> None:
    """Our export, then its fused operators."""
    with TemporaryDirectory(dir=out) as folder:
        write_graph(checkpoint, Path(folder))
        optimise_graph(Path(folder) / GRAPH, out / GRAPH)


def write_genai(checkpoint: Path, out: Path) -> None:
    """onnxruntime-genai's builder, by its own command line, which it has no stable function for."""
    precision = {"float32": "fp32", "float16": "fp16"}[str(read_config(checkpoint)["dtype"])]
    with TemporaryDirectory() as cache:
        sys.argv = ["builder", "-i", str(checkpoint), "-o", str(out), "-p", precision, "-e", "cpu", "-c", cache]
        with redirect_stdout(sys.stderr):
            runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__")


KINDS: Final[dict[str, Callable[[Path, Path], None]]] = {
    "graph": write_graph,
    "optimised": write_optimised,
    "genai": write_genai,
}


def main(kind: str, warm: Path, warm_out: Path, checkpoint: Path, out: Path) -> None:
    """Make it and print what that took."""
    torch.set_num_threads(1)
    KINDS[kind](warm, warm_out)
    before, wall, processor = reset_peak(), time.perf_counter(), time.process_time()
    KINDS[kind](checkpoint, out)
    seconds = {"seconds": time.perf_counter() - wall, "processor": time.process_time() - processor}
    print(json.dumps({**seconds, "bytes": peak() - before}))


if __name__ == "__main__":
    main(sys.argv[1], *map(Path, sys.argv[2:]))
