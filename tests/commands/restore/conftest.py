"""Results to undo, each made once a session."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
import torch

from alignez_bake.commands.bake import bake
from alignez_bake.edit_plan import EditPlan
from alignez_bake.safetensors_io.reader import open_folder
from tests.baking import plan_for
from tests.commands.small_bakes import edits_at, routes, small_base

if TYPE_CHECKING:
    from pathlib import Path

SHARDS = "20KB"


def with_extras(base: Path) -> Path:
    """A base with a card, a licence in a folder, and tensors that no architecture knows."""
    (base / "README.md").write_text("# The base\n")
    (base / "legal").mkdir()
    (base / "legal" / "LICENSE").write_text("all yours\n")
    return base


def names_in(folder: Path) -> list[str]:
    """What lies in a folder, hidden things included."""
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Path:
    """A sharded `base`, and of the same edits `out`, `kept` (reversible) and `wide` (float32). Never change it."""
    folder = tmp_path_factory.mktemp("restore")
    base = with_extras(small_base("llama", folder / "base", dtype=torch.bfloat16, max_shard_size=SHARDS))
    assert len(open_folder(base).files) > 2
    plan = plan_for(base, ("attn_write",))
    for name, settings in {"out": {}, "kept": {"reversible": True}, "wide": {"dtype": "float32"}}.items():
        assert bake(base, plan, folder / name, **settings).verdict == "passed"
    return folder


@pytest.fixture
def copy(made, tmp_path):
    """`copy(name)`: a result of one's own."""
    return lambda name: shutil.copytree(made / name, tmp_path / "here" / name)


@pytest.fixture(scope="session")
def grown(tmp_path_factory) -> Path:
    """A qwen2 `base`; `out` is a llama with new biases, units and a module; `kept` is the same, reversible."""
    folder = tmp_path_factory.mktemp("grown")
    base = with_extras(small_base("qwen2", folder / "base", max_shard_size=SHARDS))
    plan = EditPlan(
        (
            *edits_at(base, "attn_write", layers=[0], constant=True),
            *edits_at(base, "mlp_write", layers=[0], reads="block", gate="relu"),
            *edits_at(base, "mlp_write", layers=[1], gate="relu"),
        )
    )
    for name in ("out", "kept"):
        result = bake(base, plan, folder / name, trust_remote_code=True, reversible=name == "kept")
        assert result.verdict == "passed"
        assert set(routes(result).values()) == {"rehome", "insert"}
    return folder
