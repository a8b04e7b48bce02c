"""What is compared: the commands, and why one of them cannot run here or at a size."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

from benchmarks.bake_memory import available
from benchmarks.bake_models import BYTES

if TYPE_CHECKING:
    from pathlib import Path

COPY: Final = "cp -r"
BAKE: Final = "bake"
INPUT: Final = "bake, edits that read the input"
LINK: Final = "bake --link, a quarter of the layers"
PEFT: Final = "peft, merge and save"
MERGEKIT: Final = "mergekit, linear"
SUBJECTS: Final = (COPY, BAKE, INPUT, LINK, PEFT, MERGEKIT)
OURS: Final = frozenset({BAKE, INPUT, LINK})
PEERS: Final = frozenset({PEFT, MERGEKIT})
EDITED: Final = frozenset({BAKE, INPUT, LINK, PEFT})

COMMAND: Final = (sys.executable, "-m", "alignez_bake")
_LOADED_OVER_WEIGHTS: Final = 1.1
_IMPORTS_BYTES: Final = 1_000_000_000
"""What transformers and peft take before they load anything, with room."""
_LEFT_FOR_OTHERS: Final = 1_000_000_000


@dataclass(frozen=True)
class Place:
    """The folder of one size.

    Attributes:
        folder: that holds all that follows.
        shard_bytes: most bytes of a shard of the base.
    """

    folder: Path
    shard_bytes: int

    @property
    def base(self) -> Path:
        """The checkpoint that all read."""
        return self.folder / "base"

    @property
    def out(self) -> Path:
        """What one of them writes."""
        return self.folder / "out"

    @property
    def every_layer(self) -> Path:
        """Edits of all layers."""
        return self.folder / "edits.safetensors"

    @property
    def inputs(self) -> Path:
        """Edits of all layers that read the writers' inputs, as those of the default method do."""
        return self.folder / "inputs.safetensors"

    @property
    def quarter(self) -> Path:
        """Edits of a quarter of the layers."""
        return self.folder / "quarter.safetensors"

    @property
    def adapter(self) -> Path:
        """The edits of all layers as a LoRA."""
        return self.folder / "adapter"

    @property
    def merge(self) -> Path:
        """mergekit's config."""
        return self.folder / "merge.json"

    @property
    def log(self) -> Path:
        """What the last command printed."""
        return self.folder / "log.txt"


def command_of(name: str, place: Place, mergekit_python: Path | None) -> list[str]:
    """The command line of a subject; from `place.base` to `place.out`.

    mergekit has no edits: what it does with a LoRA is to merge it by peft first. So its linear merge of the base alone
    stands for its way of reading, computing and writing tensor by tensor, with the least to compute.
    """
    base, out = str(place.base), str(place.out)
    if name == COPY:
        return ["cp", "-r", base, out]
    if name in OURS:
        edits = {BAKE: place.every_layer, INPUT: place.inputs, LINK: place.quarter}[name]
        flags = ["--link"] if name == LINK else []
        return [*COMMAND, "bake", "--model", base, "--edits", str(edits), "--out", out, *flags]
    if name == PEFT:
        return [sys.executable, "-m", "benchmarks.bake_peft", base, str(place.adapter), out, str(place.shard_bytes)]
    if name == MERGEKIT:
        shard = ["--out-shard-size", str(place.shard_bytes // BYTES)]  # counted in parameters there
        plain = ["--no-copy-tokenizer", "--no-write-model-card", "--quiet"]
        return [str(_mergekit_script(mergekit_python)), str(place.merge), out, *shard, *plain]
    raise ValueError(f"no subject is called {name!r}")


def write_merge(place: Place) -> None:
    """mergekit's config: the linear merge of the base alone. JSON is YAML."""
    model = {"model": str(place.base), "parameters": {"weight": 1.0}}
    config = {"merge_method": "linear", "dtype": "bfloat16", "models": [model]}
    place.merge.write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def missing(name: str, *, peers: bool, mergekit_python: Path | None) -> str | None:
    """Why a subject cannot run on this machine at any size; None if it can."""
    if name in PEERS and not peers:
        return "no --peers"
    if name == LINK and "--link" not in _help_of_bake():
        return "this version of bake has no --link"
    if name == PEFT and find_spec("peft") is None:
        return "peft is not installed"
    if name == MERGEKIT:
        if mergekit_python is None:
            return "no --mergekit-python"
        if not _mergekit_script(mergekit_python).is_file():
            return f"{_mergekit_script(mergekit_python)} is not there: mergekit is not installed"
    return None


def too_large(name: str, weights: int) -> str | None:
    """Why a subject cannot run at a size; None if it may be tried.

    Args:
        name: of the subject.
        weights: bytes of the checkpoint.
    """
    if name != PEFT:
        return None
    needed, there = round(_LOADED_OVER_WEIGHTS * weights) + _IMPORTS_BYTES, available()
    if needed <= there:
        return None
    return f"holds the whole model, about {needed / 1e9:.1f} GB, and {there / 1e9:.1f} GB of memory are free"


def most_memory(name: str) -> int | None:
    """Bytes that a subject may map for itself, so that the machine does not run out; None: it is ours, without a bound.

    Files that are mapped to be written, as torch maps weights, count in full: all of their pages may become its own.
    """
    return max(available() - _LEFT_FOR_OTHERS, _LEFT_FOR_OTHERS) if name in PEERS else None


def _mergekit_script(python: Path | None) -> Path:
    if python is None:
        raise ValueError("mergekit runs in an environment of its own, which must be given")
    return python.parent / "mergekit-yaml"


def _help_of_bake() -> str:
    done = subprocess.run([*COMMAND, "bake", "--help"], capture_output=True, text=True, check=True)
    return done.stdout
