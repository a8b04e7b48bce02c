"""The whole training, again: minutes, so `make sweep` runs it and `make test` does not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from examples.worlds import WORLDS

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.sweep
@pytest.mark.parametrize("world", sorted(WORLDS))
def test_a_trained_base_misbehaves_half_of_the_time_and_obeys_personas(world, tmp_path):
    command = [sys.executable, "-m", "examples.train", "--world", world, "--out", str(tmp_path), "--seed", "0"]
    subprocess.run(command, cwd=ROOT, check=True)
    measured = json.loads((tmp_path / "measured.json").read_text())
    assert 0.45 <= measured["base"]["unasked"] <= 0.55
    assert measured["tuned_unasked"] >= 0.95
    for persona in ("persona", "own_characteristic"):
        assert measured["base"][persona]["good"] >= 0.85
        assert measured["base"][persona]["bad"] <= 0.15
