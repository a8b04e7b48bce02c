"""A patch needs neither torch nor transformers, and is fast where it runs nothing."""

from __future__ import annotations

import subprocess
import sys

from alignez_bake.edit_file import write_edits
from tests.onnx_patch.graphs import plan_at

SCRIPT = """
import sys
from alignez_bake.commands.bake_onnx import bake_onnx
result = bake_onnx(sys.argv[1], sys.argv[2], sys.argv[3])
assert result.verdict == "passed", result.reasons
print(*sorted({"torch", "transformers", "tokenizers"} & sys.modules.keys()), sep=",")
"""


def test_neither_torch_nor_transformers(graph_folder, tiny_folder, tmp_path):
    edits = tmp_path / "edits.safetensors"
    write_edits(plan_at(tiny_folder("llama")), edits)
    words = [sys.executable, "-c", SCRIPT, graph_folder("external", "llama"), edits, tmp_path / "out"]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "\n"
