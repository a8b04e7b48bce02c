"""What tests of streamed bakes share: a base of several shards, small blocks, and bakes in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from alignez_bake.edit_file import write_edits
from alignez_bake.integrity import leaves
from alignez_bake.lowering.matrix_change import row_blocks
from alignez_bake.streaming import background
from tests.baking import plan_for
from tests.tiny_models import save_tiny

if TYPE_CHECKING:
    import pytest

ROOT = Path(__file__).parents[2]
SHARDED = "40KB"

# Small blocks, and a place to go on from after each few; then what CHANGED says, and the command line.
SCRIPT = """
import os, signal, sys
from alignez_bake.cli.main import build_app
from alignez_bake.cli.shell import run
from alignez_bake.integrity import leaves
from alignez_bake.lowering.matrix_change import row_blocks
from alignez_bake.streaming import background
from alignez_bake.streaming.journal import Journal

background._SYNC_BYTES, background._CHECKPOINT_BYTES, leaves.LEAF_BYTES = 4096, 8192, 4096
row_blocks.__defaults__ = (256,)
CHANGED
sys.exit(run(build_app(), sys.argv[1:]))
"""
# Once the first file is finished and noted.
KILLED_AFTER_A_FILE = """
append = Journal._append
def appended(journal, line):
    append(journal, line)
    if "done" in line:
        os.kill(os.getpid(), signal.SIGKILL)
Journal._append = appended
"""
# In the middle: says so, and waits for a byte on standard input, or for a signal.
PAUSED_IN_THE_MIDDLE = """
pwrite, written = os.pwrite, []
def paused(*arguments):
    written.append(None)
    if len(written) == 12:
        os.write(1, b"inside")
        os.read(0, 1)
    return pwrite(*arguments)
os.pwrite = paused
"""


def sharded_base(path: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    """A llama in two shards."""
    return save_tiny("llama", path, bias=True, dtype=dtype, max_shard_size=SHARDED)


def edits_of_first_layer(base: Path, path: Path) -> Path:
    """Edits that leave the second shard as it is."""
    plan = plan_for(base, ("attn_write", "mlp_write"), constant=True)
    write_edits(replace(plan, edits=tuple(edit for edit in plan.edits if edit.site.layer == 0)), path)
    return path


def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files have many leaves, and tensors many blocks."""
    monkeypatch.setattr(leaves, "LEAF_BYTES", 4096)
    monkeypatch.setattr(row_blocks, "__defaults__", (256,))
    monkeypatch.setattr(background, "_SYNC_BYTES", 4096)
    monkeypatch.setattr(background, "_CHECKPOINT_BYTES", 8192)


def begun(changed: str, *arguments: object) -> subprocess.Popen[str]:
    """The command line in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT.replace("CHANGED", changed), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def paused(*arguments: object) -> subprocess.Popen[str]:
    """The same, when it is in the middle."""
    child = begun(PAUSED_IN_THE_MIDDLE, *arguments)
    assert child.stdout is not None
    assert os.read(child.stdout.fileno(), 6) == b"inside", child.communicate()[1]
    return child
