"""Tokens a second, memory and export time of the same edited model, run in several ways.

    python -m benchmarks.onnx --out DIR [--optimum-python .venv-optimum/bin/python] [--size 125M] [--device cuda]

A random llama with edits of rank 4 at every MLP writer: in torch with hooks, baked in torch, as our graph, as our
graph with fused operators, as optimum's export of the baked checkpoint, and by onnxruntime-genai. All run the same
function, which is checked, on one thread, and take turns token by token. optimum's export is made in optimum's own
environment and run here, by the same ONNX Runtime and the same loop as ours: what differs is the graph.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import onnxruntime
import torch

from alignez_bake.model_folder import open_model_folder
from alignez_bake.progress import RichProgress
from benchmarks.circumstances import circumstances, load_average
from benchmarks.onnx_folder import SUBJECTS, make, memory, missing, open_subject, write_models
from benchmarks.onnx_models import SIZES, weight_bytes
from benchmarks.onnx_running import TOLERANCE, check_agreement, measure, prompt
from benchmarks.onnx_tables import Found, cost_table, plot, rate_table

_COUNTED_MEMORY = 8
"""Tokens that are decoded where memory is measured: the cache grows with each, and is small beside the weights."""


def main(arguments: list[str]) -> None:
    """Run from the command line."""
    options = _parser().parse_args(arguments)
    _check_device(options.device)
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    load_before = load_average()
    reasons = {name: missing(name, options.device, options.optimum_python) for name in SUBJECTS}
    names = [name for name in SUBJECTS if reasons[name] is None]
    with TemporaryDirectory(dir=options.out) as place:
        folder = Path(place).resolve()
        write_models(folder, options.size, getattr(torch, options.dtype))
        base = open_model_folder(folder / "base")
        weights = weight_bytes(base)
        made = {name: make(name, folder, options.optimum_python) for name in names}
        used = _memory(names, folder, options)
        room = options.prefill + options.decode + 1
        subjects = {name: open_subject(name, folder, options.device, room) for name in names}
        rates, apart = {}, {}
        for batch in options.batch:
            ids = prompt(int(base.config["vocab_size"]), batch, options.prefill)
            apart[batch] = check_agreement(subjects, ids, TOLERANCE[options.dtype])
            rates[batch] = measure(subjects, ids, tokens=options.decode, rounds=options.rounds, progress=RichProgress())
    found = {
        name: Found({batch: rates[batch][name] for batch in options.batch}, made[name], used[name]) for name in names
    }
    skipped = {name: reason for name, reason in reasons.items() if reason is not None}
    around = circumstances("benchmarks.onnx", arguments)
    around = replace(around, versions=f"{around.versions}, onnxruntime {onnxruntime.__version__}")
    loads = (load_before, load_average())
    title = f"llama of {options.size}, {options.dtype} on {options.device}"
    lines = [f"### {title}, {options.rounds} rounds", ""]
    for batch in options.batch:
        lines += [f"Batch {batch}, {options.prefill} tokens read and {options.decode} written:", ""]
        lines += [rate_table(found, batch), ""]
    lines += [cost_table(found, weights), ""]
    lines += [f"Left out: {name}, {reason}." for name, reason in skipped.items()]
    lines += ["", f"Load average before {loads[0]:.1f}, after {loads[1]:.1f}.", "", *around.lines(), ""]
    text = "\n".join(lines)
    result = {
        "circumstances": asdict(around),
        "model": title,
        "weights_bytes": weights,
        "prefill": options.prefill,
        "decode": options.decode,
        "load_before_and_after": loads,
        "subjects": {name: asdict(subject) for name, subject in found.items()},
        "left_out": skipped,
        "logits_apart_from_the_first": apart,
    }
    (options.out / "onnx.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (options.out / "onnx.md").write_text(text, encoding="utf-8")
    plot(found, options.out / "onnx.png")
    print(text)


def _memory(names: list[str], folder: Path, options: argparse.Namespace) -> dict[str, dict[int, int]]:
    """By name and batch; none on a GPU, whose memory the system does not tell."""
    if options.device != "cpu" or options.no_memory:
        return {name: {} for name in names}
    return {
        name: {
            batch: memory(name, folder, batch=batch, prefill=options.prefill, decode=_COUNTED_MEMORY)
            for batch in options.batch
        }
        for name in names
    }


def _check_device(device: str) -> None:
    """Refuse a device that would leave nothing to compare.

    Raises:
        SystemExit: what is missing.
    """
    if device == "cpu":
        return
    if not torch.cuda.is_available():
        raise SystemExit(f"--device {device}: torch {torch.__version__} sees no GPU here")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise SystemExit(f"--device {device}: needs onnxruntime-gpu in the place of onnxruntime")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.onnx", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for figures, table and plot")
    parser.add_argument("--size", choices=SIZES, default="51M", help="of the random model")
    parser.add_argument("--dtype", choices=TOLERANCE, default="float32")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="rows that are generated together")
    parser.add_argument("--prefill", type=int, default=128, help="tokens of a prompt")
    parser.add_argument("--decode", type=int, default=64, help="new tokens")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-memory", action="store_true", help="leave out what generating needs: a process for each")
    parser.add_argument("--optimum-python", type=Path, help="python of the environment that `make optimum` makes")
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
