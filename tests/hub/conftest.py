"""A hub of its own for each test, and a process that is its client."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from alignez_bake.commands.bake import bake
from tests.baking import plan_for
from tests.hub.local_hub import LocalHub, running_hub

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]


class Ran(NamedTuple):
    """What a client's process left."""

    status: int
    out: str
    errors: list[str]

    @property
    def json(self) -> Any:
        """The one document on standard output."""
        return json.loads(self.out)


def run_python(env: dict[str, str], code: str, *arguments: object) -> Ran:
    """Run code in a fresh interpreter with this environment."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    return Ran(done.returncode, done.stdout, done.stderr.splitlines())


_PUSH = """
import sys
import typer
from alignez_bake.cli.push import push_command
from alignez_bake.cli.shell import run
app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)
app.callback()(lambda: None)
app.command("push")(push_command)
sys.exit(run(app, sys.argv[1:]))
"""


def push(env: dict[str, str], *arguments: object) -> Ran:
    """`alignez-bake push ...` in a process of its own."""
    return run_python(env, _PUSH, "push", *arguments)


@pytest.fixture
def local_hub(tmp_path_factory) -> Iterator[LocalHub]:
    """A running hub with nothing in it."""
    with running_hub(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture(scope="session")
def hub_base(tmp_path_factory, save_tiny) -> Path:
    """A tiny llama in three shards, with a card. Never write into it."""
    base = save_tiny("llama", tmp_path_factory.mktemp("hub_base") / "base", max_shard_size="60KB")
    (base / "README.md").write_text("---\nlicense: apache-2.0\nlanguage:\n- en\n---\n# Base\n")
    return base


@pytest.fixture(scope="session")
def result(tmp_path_factory, hub_base) -> Path:
    """A bake of `hub_base` that passed. Never write into it."""
    out = tmp_path_factory.mktemp("hub_result") / "aligned"
    bake(hub_base, plan_for(hub_base), out)
    return out


def files_of(folder: Path) -> dict[str, bytes]:
    """Name and content of every file below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
