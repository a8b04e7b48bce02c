"""The folder of a run: a base, the baked checkpoint, and what was made of it, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

from alignez_bake.commands.bake import bake
from alignez_bake.model_folder import open_model_folder
from benchmarks.onnx_models import folded_plan, write_base
from benchmarks.onnx_subjects import GenaiSubject, GraphSubject, TorchSubject

if TYPE_CHECKING:
    import torch

    from benchmarks.onnx_subjects import Subject

HOOKS: Final = "torch, hooks"
BAKED: Final = "torch, baked"
GRAPH: Final = "graph"
OPTIMISED: Final = "optimised graph"
OPTIMUM: Final = "optimum's export"
GENAI: Final = "onnxruntime-genai"
SUBJECTS: Final = (HOOKS, BAKED, GRAPH, OPTIMISED, OPTIMUM, GENAI)

_MADE_BY: Final = {GRAPH: "graph", OPTIMISED: "optimised", GENAI: "genai"}
_FOLDER_OF: Final = {**_MADE_BY, OPTIMUM: "optimum"}
ROOT: Final = Path(__file__).parents[1]


@dataclass(frozen=True)
class Made:
    """What it took to make an artefact.

    Attributes:
        seconds: on the clock, from the checkpoint on disk to the artefact on disk.
        processor: seconds that it computed, which other programs disturb less.
        bytes: the most memory above what was resident before.
    """

    seconds: float
    processor: float
    bytes: int


def write_models(folder: Path, size: str, dtype: torch.dtype) -> None:
    """Base and baked checkpoint, and a tiny pair of them in `warm`."""
    for place, of_size in ((folder, size), (folder / "warm", "tiny")):
        write_base(of_size, place / "base", dtype=dtype)
        base = open_model_folder(place / "base")
        bake(base.path, folded_plan(base), place / "checkpoint")


def missing(name: str, device: str, optimum_python: Path | None) -> str | None:
    """Why a subject cannot be made or run here; None if it can."""
    if name == OPTIMUM and optimum_python is None:
        return "no --optimum-python"
    if name == GENAI:
        if find_spec("onnxruntime_genai") is None:
            return "onnxruntime-genai is not installed"
        if device != "cpu":
            return "built for the CPU alone here"
    return None


def make(name: str, folder: Path, optimum_python: Path | None) -> Made | None:
    """Make what a subject runs, and the same of the tiny model; None for torch, which runs the checkpoint itself."""
    if name not in _FOLDER_OF:
        return None
    command = [str(optimum_python), "-m", "benchmarks.onnx_optimum"]
    if name != OPTIMUM:
        command = [sys.executable, "-m", "benchmarks.onnx_made", _MADE_BY[name]]
    for place in (folder / "warm", folder):
        out = place / _FOLDER_OF[name]
        out.mkdir()
        command += [str(place / "checkpoint"), str(out)]
    return Made(**json.loads(_last_line(command)))


def open_subject(name: str, folder: Path, device: str, room: int) -> Subject:
    """What `make` made, ready to run; `room`: most tokens of a row."""
    if name == HOOKS:
        base = open_model_folder(folder / "base")
        return TorchSubject(base.path, device, (base, folded_plan(base)))
    if name == BAKED:
        return TorchSubject(folder / "checkpoint", device)
    if name == GENAI:
        return GenaiSubject(folder / _FOLDER_OF[name], room)
    return GraphSubject(folder / _FOLDER_OF[name] / "model.onnx", device)


def memory(name: str, folder: Path, *, batch: int, prefill: int, decode: int) -> int:
    """The most bytes that a subject needs to generate, in a process of its own, on the CPU."""
    numbers = (str(number) for number in (batch, prefill, decode))
    line = _last_line([sys.executable, "-m", "benchmarks.onnx_memory", name, str(folder), *numbers])
    return int(json.loads(line)["bytes"])


def _last_line(command: list[str]) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return done.stdout.strip().splitlines()[-1]
