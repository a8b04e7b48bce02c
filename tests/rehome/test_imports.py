"""Re-homing reads headers and configs: it must do without torch and transformers."""

from __future__ import annotations

import subprocess
import sys


def test_no_module_imports_torch_or_transformers():
    code = (
        "import sys, alignez_bake.rehome.rehome, alignez_bake.rehome.units, alignez_bake.rehome.changes\n"
        "print([name for name in ('torch', 'transformers', 'scipy') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
