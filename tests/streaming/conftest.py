"""A base with edits, undisturbed or killed, made once a session; and what a refusal must leave alone."""

from __future__ import annotations

import os
import shutil
import signal
from typing import TYPE_CHECKING, NamedTuple, get_args

import pytest

from alignez_bake.lowering.row_kernel import VARIABLE, RowBackend, why_not_compiled
from tests.baking import command, contents, nothing_written, replace_in_file
from tests.streaming.streamed_bakes import (
    KILLED_AFTER_A_FILE,
    begun,
    edits_of_first_layer,
    sharded_base,
    small_blocks,
)

if TYPE_CHECKING:
    from pathlib import Path


def names(folder: Path) -> list[str]:
    """What lies in a folder."""
    return [path.name for path in folder.iterdir()]


def touched(place: Place) -> None:
    """Another time of change of the second weight file."""
    os.utime(place.shard(1))


def rewritten(place: Place) -> None:
    """Another sign of a tensor that no edit touches, in that file."""
    replace_in_file(place.shard(1), lambda name, values: -values if "1.mlp.down_proj.weight" in name else None)


class Place(NamedTuple):
    """A folder with a base, edits, and room for a result."""

    folder: Path

    @property
    def base(self) -> Path:
        return self.folder / "base"

    @property
    def out(self) -> Path:
        return self.folder / "work" / "out"

    @property
    def partial(self) -> Path:
        return self.folder / "work" / ".out.partial"

    @property
    def journal(self) -> Path:
        return self.partial / "alignez" / "journal.jsonl"

    def shard(self, number: int) -> Path:
        return sorted(self.base.glob("*.safetensors"))[number]

    def bake(self, *options: object, edits: str = "edits.safetensors") -> tuple[object, ...]:
        return ("bake", "--model", self.base, "--edits", self.folder / edits, "--out", self.out, *options)


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A base and edits."""
    place = Place(tmp_path_factory.mktemp("made"))
    sharded_base(place.base)
    edits_of_first_layer(place.base, place.folder / "edits.safetensors")
    place.out.parent.mkdir()
    return place


@pytest.fixture(scope="session")
def whole(made):
    """The result of an undisturbed bake, file by file."""
    child = begun("", *made.bake())
    assert child.wait() == 0, child.communicate()[1]
    found = contents(made.out)
    shutil.rmtree(made.out)
    return found


@pytest.fixture(scope="session")
def once_killed(made, tmp_path_factory):
    """The same after a kill, with a journal."""
    place = Place(tmp_path_factory.mktemp("killed") / "place")
    shutil.copytree(made.folder, place.folder)
    assert begun(KILLED_AFTER_A_FILE, *place.bake()).wait() == -signal.SIGKILL
    assert b"done" in place.journal.read_bytes()
    return place


@pytest.fixture
def place(made, tmp_path):
    """A place of one's own; times of change are kept."""
    shutil.copytree(made.folder, tmp_path / "place")
    return Place(tmp_path / "place")


@pytest.fixture(params=get_args(RowBackend))
def row_backend(request, monkeypatch):
    """What computes rows in this process."""
    if request.param == "compiled" and (why := why_not_compiled()) is not None:
        pytest.skip(why)
    monkeypatch.setenv(VARIABLE, request.param)
    return request.param


@pytest.fixture
def killed(once_killed, tmp_path, monkeypatch):
    small_blocks(monkeypatch)  # as the killed run's
    shutil.copytree(once_killed.folder, tmp_path / "place")
    return Place(tmp_path / "place")


@pytest.fixture
def refused(capsys):
    """`refused(place, *arguments, says=...)`: status 2, one line, and nothing changed below the place."""

    def check(place, *arguments, says):
        capsys.readouterr()
        with nothing_written(place.folder):
            status = command(*arguments)
        captured = capsys.readouterr()
        assert status == 2, captured.err
        (line,) = [line for line in captured.err.splitlines() if line.startswith("error: ")]
        assert captured.err.splitlines()[-1] == line
        assert says in line
        assert "Traceback" not in captured.err

    return check
