"""kill -9 at any step, and file systems that lack something: the folder is the result or the base, whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from alignez_bake.commands.restore import restore
from alignez_bake.errors import BadInputError
from alignez_bake.integrity import swap
from tests.baking import contents, nothing_written
from tests.commands.restore.conftest import names_in

KILLED = """
import os, sys
from pathlib import Path
from alignez_bake.commands import restore as restoring
from alignez_bake.integrity import swap
step, exchanges = sys.argv[3], sys.argv[4] == "exchange"
if not exchanges:
    swap._exchanged = lambda one, other: False
seen = 0

def killed_at(name, function):
    def run(*arguments, **settings):
        global seen
        seen += name == step.split(":")[0]
        if name == step.split(":")[0] and seen == int(step.split(":")[1]):
            os.kill(os.getpid(), 9)
        return function(*arguments, **settings)
    return run

restoring.make_file = killed_at("make", restoring.make_file)
restoring.swap_folders = killed_at("swap", restoring.swap_folders)
restoring.shutil.rmtree = killed_at("remove", restoring.shutil.rmtree)
Path.rename = killed_at("rename", Path.rename)
restoring.restore(sys.argv[1], sys.argv[2])
"""


@pytest.mark.parametrize(
    ("step", "how", "restored"),
    [
        ("make:1", "exchange", False),
        ("make:6", "exchange", False),
        ("swap:1", "exchange", False),
        ("remove:1", "exchange", True),
        ("rename:2", "renames", None),
        ("remove:1", "renames", True),
    ],
)
def test_a_kill_leaves_either_and_the_same_command_goes_on(step, how, restored, copy, made):
    out = copy("out")
    before = contents(out)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, out, made / "base", step, how],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[3],
    )
    assert done.returncode == -9, done.stderr
    # Between two renames the folder lies aside, whole; the next run puts it back.
    assert out.exists() is (restored is not None)
    found = contents(out if out.exists() else swap.aside(out))
    assert found == (contents(made / "base") if restored else before)
    restore(out, made / "base")
    assert contents(out) == contents(made / "base")
    assert names_in(out.parent) == ["out"]


def test_a_folder_that_cannot_be_renamed_stays(copy, made, monkeypatch):
    def busy(_new, _old):
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(swap, "_exchanged", busy)
    out = copy("out")
    with (
        nothing_written(out.parent),
        pytest.raises(BadInputError, match=r"cannot be replaced \(Device or resource busy"),
    ):
        restore(out, made / "base")


def test_without_exchange_of_names_it_takes_two_renames(copy, made, monkeypatch):
    monkeypatch.setattr(swap, "_exchanged", lambda _new, _old: False)
    out = copy("out")
    restore(out, made / "base")
    assert contents(out) == contents(made / "base")
    assert names_in(out.parent) == ["out"]


def test_without_hard_links_it_copies(copy, made, monkeypatch):
    def no_links(*_names):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("os.link", no_links)
    out = copy("out")
    restore(out, made / "base")
    assert contents(out) == contents(made / "base")
