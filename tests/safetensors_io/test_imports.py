"""The package must start fast: numpy and ml_dtypes, no torch, no transformers."""

import subprocess
import sys

FORBIDDEN = {"torch", "transformers", "safetensors", "huggingface_hub"}


def test_no_heavy_import():
    code = "import sys, alignez_bake.safetensors_io; print(' '.join({m.partition('.')[0] for m in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "numpy" in loaded
    assert not FORBIDDEN & set(loaded)
