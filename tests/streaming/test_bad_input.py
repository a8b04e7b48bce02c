"""What a streamed bake refuses or stops at: one clear line, status 2, nothing half-written, the base as it was."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest

from alignez_bake.edit_file import write_edits
from alignez_bake.model_folder import open_model_folder
from alignez_bake.safetensors_io.writer import copy_with_replacements
from tests.baking import command, contents, nothing_written, plan_for
from tests.streaming.streamed_bakes import (
    KILLED_AFTER_A_FILE,
    begun,
    edits_of_first_layer,
    paused,
    sharded_base,
    small_blocks,
)

if TYPE_CHECKING:
    from pathlib import Path


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


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


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A base and edits."""
    place = Place(tmp_path_factory.mktemp("made"))
    sharded_base(place.base)
    edits_of_first_layer(place.base, place.folder / "edits.safetensors")
    place.out.parent.mkdir()
    return place


@pytest.fixture(scope="module")
def whole(made):
    """The result of an undisturbed bake, file by file."""
    child = begun("", *made.bake())
    assert child.wait() == 0, child.communicate()[1]
    found = contents(made.out)
    shutil.rmtree(made.out)
    return found


@pytest.fixture(scope="module")
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


# Between a kill and the next run -----------------------------------------------------------------------------------


def test_the_same_command_goes_on(killed, whole):
    """What the other tests change is what keeps it from going on."""
    assert command(*killed.bake()) == 0
    assert contents(killed.out) == whole
    assert names(killed.out.parent) == ["out"]


def touched(place):
    os.utime(place.shard(1))


def rewritten(place):
    """Another sign of a tensor that no edit touches, in the second file."""
    tensors = open_model_folder(place.base).tensors
    values = tensors.read("model.layers.1.mlp.down_proj.weight")
    copy_with_replacements(
        place.shard(1), place.shard(1), lambda name: -values if "1.mlp.down_proj.weight" in name else None
    )


def other_config(place):
    config = place.base / "config.json"
    config.write_text(config.read_text().replace('"eos_token_id": 1', '"eos_token_id": 2'))


@pytest.mark.parametrize(
    ("change", "says"), [(touched, "base_files"), (rewritten, "base, base_files"), (other_config, "base, config")]
)
def test_a_changed_base_is_refused(change, says, killed, refused):
    before = contents(killed.base)
    change(killed)
    assert (contents(killed.base) != before) == (change is not touched)
    refused(killed, *killed.bake("--allow-other-base"), says=f"unfinished result of another bake (other {says}")


def test_other_edits_are_refused(killed, refused):
    write_edits(plan_for(killed.base), killed.folder / "other.safetensors")
    refused(killed, *killed.bake(edits="other.safetensors"), says="of another bake (other edits")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--dtype", "float32"), "(other dtype)"),
        (("--link",), "(other settings)"),
        (("--hash", "sha256"), "(other settings)"),
        (("--as", "adapter"), "unfinished result of another bake"),
    ],
)
def test_other_settings_are_refused(options, says, killed, refused):
    refused(killed, *killed.bake(*options), says=says)


def test_a_damaged_journal_is_refused_by_name(killed, refused):
    lines = killed.journal.read_bytes().splitlines(keepends=True)
    killed.journal.write_bytes(lines[0] + b"[" * 100_000 + b"\n")
    refused(killed, *killed.bake(), says=f"{killed.journal} is damaged")


def test_what_is_no_longer_as_it_was_noted_is_written_anew(killed, whole):
    (finished,) = killed.partial.glob("*.safetensors")
    data = bytearray(finished.read_bytes())
    data[len(data) // 2] ^= 1
    finished.write_bytes(data)
    assert command(*killed.bake()) == 0
    assert contents(killed.out) == whole


def test_what_lay_beside_the_weights_is_made_anew(killed, whole):
    for name in ("notes.txt", "tokenizer.json", "alignez/pairs.jsonl", "model-9.safetensors", ".graphs-1/half"):
        path = killed.partial / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("of the killed run")
    assert command(*killed.bake()) == 0
    assert contents(killed.out) == whole


# During a run ------------------------------------------------------------------------------------------------------


def test_a_second_run_into_one_folder(place, whole, capsys):
    child = paused(*place.bake())
    assert command(*place.bake()) == 2
    assert f"another run is writing to {place.out}" in capsys.readouterr().err
    _, errors = child.communicate("go")
    assert child.returncode == 0, errors
    assert contents(place.out) == whole


def test_a_lock_goes_with_its_process(place):
    place.partial.mkdir()
    descriptor = os.open(place.partial, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    assert command(*place.bake()) == 2
    os.close(descriptor)
    assert command(*place.bake()) == 0


@pytest.mark.parametrize("change", [touched, rewritten])
def test_a_base_that_changes_meanwhile(change, place):
    child = paused(*place.bake())
    change(place)
    changed = contents(place.base)
    _, errors = child.communicate("go")
    assert child.returncode == 2, errors
    assert f"{place.shard(1)} changed after its header was read" in errors.splitlines()[-1]
    assert names(place.out.parent) == []
    assert contents(place.base) == changed


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize(
    ("module", "name", "after"),
    [(os, "pwrite", 12), (os, "fdatasync", 1), (os, "fsync", 3)],
)
def test_a_full_disk_in_the_middle(module, name, after, number, place, refused, monkeypatch):
    small_blocks(monkeypatch)
    call, calls = getattr(module, name), []

    def full(*arguments):
        calls.append(name)
        if len(calls) > after:
            raise OSError(number, os.strerror(number))
        return call(*arguments)

    monkeypatch.setattr(module, name, full)
    refused(place, *place.bake(), says=f"no space left while writing {place.out}")
    assert len(calls) > after


def test_a_file_that_may_not_grow(place):
    child = begun("import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))", *place.bake())
    _, errors = child.communicate()
    assert child.returncode == 2, errors
    assert "a file is larger than this file system allows" in errors.splitlines()[-1]
    assert names(place.out.parent) == []


def test_a_disk_that_is_too_small_is_refused_before(place, refused, monkeypatch):
    usage = shutil.disk_usage(place.folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    monkeypatch.setattr(os, "pwrite", None)
    refused(place, *place.bake(), says="MB are needed")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("tensor", "at"),
    [
        ("model.layers.0.mlp.down_proj.weight", -1),
        ("lm_head.weight", 5000),
        ("model.layers.1.self_attn.o_proj.bias", 7),
    ],
)
def test_weights_that_are_not_finite(tensor, at, value, place, refused, monkeypatch):
    small_blocks(monkeypatch)
    tensors = open_model_folder(place.base).tensors
    values = tensors.read(tensor).copy()
    values.reshape(-1)[at] = value
    (file,) = [file for file in tensors.files if tensor in tensors.header(file).entries]
    copy_with_replacements(place.base / file, place.base / file, lambda name: values if name == tensor else None)
    refused(place, *place.bake("--allow-other-base"), says=f"tensor '{tensor}' in {place.base / file} holds NaN")
    refused(place, *place.bake("--allow-other-base", "--dtype", "float32"), says=f"tensor '{tensor}'")


# Signals -----------------------------------------------------------------------------------------------------------


def test_an_interrupt_leaves_nothing(place):
    child = paused(*place.bake())
    assert place.partial.is_dir()
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate()
    assert child.returncode == 130, errors
    assert "interrupted" in errors.splitlines()[-1]
    assert names(place.out.parent) == []


def test_a_termination_is_gone_on_from(place, whole, monkeypatch):
    small_blocks(monkeypatch)
    child = paused(*place.bake())
    child.send_signal(signal.SIGTERM)
    child.communicate()
    assert child.returncode == -signal.SIGTERM
    assert not place.out.exists()
    assert len(place.journal.read_bytes().splitlines()) > 1
    assert command(*place.bake()) == 0
    assert contents(place.out) == whole


# Places ------------------------------------------------------------------------------------------------------------


def states(folder):
    """Bytes, place on the disk, mode and time of change of each file."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        data = path.read_bytes() if path.is_file() else None
        found[str(path)] = (data, status.st_ino, status.st_mode, status.st_mtime_ns, status.st_size)
    return found


@pytest.mark.parametrize("options", [(), ("--link",)], ids=str)
def test_a_base_that_can_only_be_read(options, place):
    for path in (*place.base.iterdir(), place.base):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = states(place.base)
    try:
        assert command(*place.bake(*options)) == 0
        assert states(place.base) == before
        if not options:
            assert all(path.stat().st_mode & 0o200 for path in place.out.rglob("*"))
    finally:
        place.base.chmod(0o755)


@pytest.mark.parametrize("options", [(), ("--link",)], ids=str)
@pytest.mark.parametrize("how", ["whole", "killed"])
def test_a_cache_of_the_hub_is_never_written_to(how, options, place, whole):
    blobs, snapshot = place.folder / "models--a--b" / "blobs", place.folder / "models--a--b" / "snapshots" / "0123"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(place.base.iterdir())):
        path.rename(blobs / f"{number:064x}")
        (snapshot / path.name).symlink_to(f"../../blobs/{number:064x}")
    place.base.rmdir()
    before = states(blobs.parent)
    arguments = ("bake", "--model", snapshot, "--edits", place.folder / "edits.safetensors", "--out", place.out)
    if how == "killed":
        assert begun(KILLED_AFTER_A_FILE, *arguments, *options).wait() == -signal.SIGKILL
        assert states(blobs.parent) == before
    assert command(*arguments, *options) == 0
    assert states(blobs.parent) == before
    assert not any(path.is_symlink() for path in place.out.rglob("*"))
    weights = {
        name: data for name, data in whole.items() if name.endswith((".safetensors", ".json")) and "/" not in name
    }
    assert {name: contents(place.out)[name] for name in weights} == weights


def test_a_place_that_cannot_be_written(place, refused, monkeypatch):
    """As the next test, for the superuser too."""

    def refused_folder(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "mkdir", refused_folder)
    refused(place, *place.bake(), says=f"--out {place.out} cannot be written: Read-only file system")


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser writes everywhere")
def test_a_parent_that_can_only_be_read(place, refused):
    place.out.parent.chmod(0o555)
    try:
        refused(place, *place.bake(), says="cannot be written")
    finally:
        place.out.parent.chmod(0o755)
