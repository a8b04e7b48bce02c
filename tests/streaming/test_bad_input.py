"""What a streamed bake refuses or stops at: one clear line, status 2, nothing half-written, the base as it was."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import time

import numpy as np
import pytest
from alignez_bake.exporters.checkpoint import CheckpointExporter

from alignez_bake import edit_file
from alignez_bake.edit_file import read_edits, write_edits
from alignez_bake.model_folder import open_model_folder
from tests.baking import command, contents, replace_in_file
from tests.streaming.conftest import names, rewritten, touched
from tests.streaming.streamed_bakes import KILLED_AFTER_A_FILE, begun, paused, small_blocks

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
    replace_in_file(place.base / file, lambda name, _: values if name == tensor else None)
    refused(place, *place.bake("--allow-other-base"), says=f"tensor '{tensor}' in {place.base / file} holds NaN")
    refused(place, *place.bake("--allow-other-base", "--dtype", "float32"), says=f"tensor '{tensor}'")
    # Where hashes are made in order, others wait for the leaf that fails.
    refused(place, *place.bake("--allow-other-base", "--hash", "sha256"), says=f"tensor '{tensor}'")


# The edit file -----------------------------------------------------------------------------------------------------


CHANGES = {
    "written into": lambda old, new: old.write_bytes(new.read_bytes()),
    "replaced": lambda old, new: new.replace(old),
    "deleted": lambda old, _new: old.unlink(),
}


@pytest.mark.parametrize("how", CHANGES)
def test_edits_that_change_while_they_are_baked(how, place, whole, capsys, monkeypatch):
    """Their arrays lie over the file: what is written into it shows, and what takes its place does not."""
    small_blocks(monkeypatch)
    monkeypatch.setattr(edit_file, "MAPPED_FROM_BYTES", 0)
    old, new = place.folder / "edits.safetensors", place.folder / "new.safetensors"
    write_edits(read_edits(old).scaled(2), new)
    assert old.stat().st_size == new.stat().st_size  # else what is missing would end this process
    export = CheckpointExporter.export

    def exported(*arguments):
        CHANGES[how](old, new)
        return export(*arguments)

    monkeypatch.setattr(CheckpointExporter, "export", exported)
    status = command(*place.bake())
    if how == "written into":
        assert status == 2
        assert "edits.safetensors was written into" in capsys.readouterr().err
        assert names(place.out.parent) == []
    else:
        assert status == 0
        assert contents(place.out) == whole


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
    # One writer stands still; what the others have written is noted by a thread that may come to it later.
    deadline = time.monotonic() + 20
    while len(place.journal.read_bytes().splitlines()) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
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
