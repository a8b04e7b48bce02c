"""kill -9 at any point: the base is untouched, nothing looks whole that is not, and the same command goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from alignez_bake.edit_file import write_edits
from tests.baking import plan_for

ROOT = Path(__file__).parents[2]
DRIVER = Path(__file__).with_name("kill_driver.py")
# `make sweep`: 200 at random, and every change of the disk.
RANDOM_KILLS = 200


@pytest.fixture(scope="module")
def base(tmp_path_factory, save_tiny):
    """Shards with many tensors each, half of them without an edit."""
    folder = tmp_path_factory.mktemp("killed") / "base"
    return save_tiny("llama", folder, bias=True, dtype=torch.bfloat16, max_shard_size="40KB")


@pytest.fixture(scope="module")
def edits(tmp_path_factory, base):
    path = tmp_path_factory.mktemp("edits") / "edits.safetensors"
    plan = plan_for(base, ("attn_write", "mlp_write"), constant=True)
    write_edits(replace(plan, edits=tuple(edit for edit in plan.edits if edit.site.layer == 0)), path)
    return path


@pytest.fixture
def killed(base, edits, tmp_path):
    """`killed(*options, **settings)`: what the driver found."""

    def run(*options, **settings):
        (tmp_path / "work").mkdir()
        command = ["bake", "--model", str(base), "--edits", str(edits), *options]
        request = {"command": command, "base": str(base), "work": str(tmp_path / "work"), **settings}
        done = subprocess.run(
            [sys.executable, str(DRIVER)],
            input=json.dumps(request),
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["wrong"] == []
        return found

    return run


WAYS = [(), ("--link",), ("--dtype", "float32", "--reversible")]


@pytest.mark.parametrize("options", WAYS, ids=" ".join)
def test_killed_at_changes_of_the_disk(options, killed):
    found = killed(*options, stride=17)
    assert found["kills"] >= 0.8 * found["changes"] / 17
    assert found["resumed"] >= found["kills"] // 4
    assert found["saved"] > 0


def test_killed_at_random(killed):
    assert killed(random_kills=12, seed=1)["kills"] == 12


@pytest.mark.sweep
@pytest.mark.parametrize("options", WAYS, ids=" ".join)
def test_killed_at_every_change_of_the_disk(options, killed):
    found = killed(*options, stride=1)
    sys.stdout.write(f"{found}\n")
    assert found["kills"] >= 0.95 * found["changes"]


@pytest.mark.sweep
@pytest.mark.parametrize("options", WAYS, ids=" ".join)
def test_killed_at_random_many_times(options, killed):
    found = killed(*options, random_kills=RANDOM_KILLS, seed=2)
    sys.stdout.write(f"{found}\n")
    assert found["kills"] == RANDOM_KILLS
