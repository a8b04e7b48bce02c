"""The command line in processes of its own, and a hub with a base and edits in it."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from alignez_bake.edit_file import write_edits
from tests.baking import plan_for
from tests.hub.conftest import Ran, files_of
from tests.hub.local_hub import LocalHub, running_hub
from tests.tiny_models import save_tiny

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Room for a persona sentence, a characteristic and an answer in the tiny tokenizer's tokens; short to be quick.
POSITIONS = 96
# An address where nothing listens.
CLOSED = "http://127.0.0.1:9"


class Filled(NamedTuple):
    """A hub with a base whose main branch has moved on, and edits for what it was.

    Attributes:
        hub: the running hub.
        base: folder with what `user/base` held at commit `old`.
        old: that commit; the edits fit this one.
        new: the commit of `main`, other weights.
        edits: the file of `user/edits`.
    """

    hub: LocalHub
    base: Path
    old: str
    new: str
    edits: Path


@contextmanager
def filled_hub(folder: Path) -> Iterator[Filled]:
    """A running hub with `user/base`, `user/edits`, and `user/gated-edits`, which do not fold."""
    bases = []
    for seed in (0, 1):
        base = save_tiny("llama", folder / f"{seed}", seed=seed, overrides={"max_position_embeddings": POSITIONS})
        (base / "README.md").write_text("---\nlicense: apache-2.0\nlanguage:\n- en\n---\n# Base\n")
        bases.append(base)
    plan = plan_for(bases[0])
    gated = dataclasses.replace(plan, edits=tuple(dataclasses.replace(edit, gate="relu") for edit in plan.edits))
    for name, entry in (("edits", plan), ("gated-edits", gated)):
        write_edits(entry, folder / f"{name}.safetensors")
    with running_hub(folder / "hub") as hub:
        old, new = (hub.store.add("user/base", files_of(base)) for base in bases)
        for name in ("edits", "gated-edits"):
            hub.store.add(f"user/{name}", {"edits.safetensors": (folder / f"{name}.safetensors").read_bytes()})
        yield Filled(hub, bases[0], old, new, folder / "edits.safetensors")


def cli(env: dict[str, str], *arguments: object, cwd: Path | None = None) -> Ran:
    """`alignez-bake ...` in a process of its own."""
    command = [sys.executable, "-m", "alignez_bake", *map(str, arguments)]
    done = subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, check=False, timeout=300)
    return Ran(done.returncode, done.stdout, done.stderr.splitlines())


def refusal(ran: Ran, status: int = 2) -> str:
    """The one line of a refused command."""
    assert ran.status == status, ran
    assert ran.errors[-1].startswith("error: ")
    assert sum(line.startswith("error: ") for line in ran.errors) == 1
    assert not any("Traceback" in line for line in ran.errors)
    return ran.errors[-1]


def in_hub(hub: LocalHub, repo: str) -> dict[str, bytes]:
    """Name and content of every file of `main`, but for the one that the hub itself makes."""
    repository = hub.store.repositories[repo]
    tree = repository.commits[repository.branches["main"]]
    return {name: hub.store.path(file.sha256).read_bytes() for name, file in tree.items() if name != ".gitattributes"}
