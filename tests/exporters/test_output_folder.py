"""Folders that appear whole or not at all: full disks, limits, and two runs into the same place."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from alignez_bake.exporters import output_folder
from alignez_bake.exporters.output_folder import check_space, publish, staged_output

from alignez_bake.edit_file import write_edits
from alignez_bake.errors import BadInputError
from tests.baking import nothing_written, plan_for

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOSPC, "no space left while writing"),
        (errno.EDQUOT, "no space left while writing"),
        (errno.EFBIG, "a file is larger than this file system allows"),
    ],
)
def test_what_the_disk_refuses_is_bad_input_and_leaves_nothing(number, reason, tmp_path):
    def write():
        with staged_output(tmp_path / "out") as staging:
            (staging / "half").write_bytes(b"half")
            raise OSError(number, os.strerror(number))

    with nothing_written(tmp_path), pytest.raises(BadInputError, match=reason):
        write()


LIMITED = """
import resource, sys
from alignez_bake.cli.main import build_app
from alignez_bake.cli.shell import run
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
sys.exit(run(build_app(), sys.argv[1:]))
"""


def test_a_limit_on_file_sizes_is_status_2(tmp_path, save_tiny):
    """Not the weights are too large, whose writer says so itself, but a file that is copied."""
    base = save_tiny("llama", tmp_path / "base")
    (base / "notes.txt").write_bytes(bytes(2**20 + 1))
    write_edits(plan_for(base), tmp_path / "edits.safetensors")
    arguments = ["bake", "--model", base, "--edits", tmp_path / "edits.safetensors"]
    command = [sys.executable, "-c", LIMITED, *map(str, arguments), "--out", str(tmp_path / "out")]
    with nothing_written(tmp_path):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "a file is larger than this file system allows" in done.stderr.splitlines()[-1]


def test_the_folder_of_the_next_run_is_left_alone(tmp_path):
    """It has the name that the first run's folder had before it was published."""
    out, next_one = tmp_path / "out", tmp_path / ".out.partial"
    with staged_output(out) as staging:
        (staging / "mine").write_text("mine")
        publish(staging, out, failed=False)
        next_one.mkdir()
        (next_one / "theirs").write_text("theirs")
    assert (out / "mine").read_text() == "mine"
    assert (next_one / "theirs").read_text() == "theirs"


def test_a_folder_that_was_published_before_it_was_locked_is_not_cleared(tmp_path, monkeypatch):
    """The lock was waited for, the name has gone to the result, and its descriptor is what was locked."""
    out, staging = tmp_path / "out", tmp_path / ".out.partial"
    staging.mkdir()
    (staging / "result").write_text("whole")

    def locked(descriptor, operation):
        staging.rename(out)
        return fcntl.flock(descriptor, operation)

    class Locks:
        LOCK_EX, LOCK_NB, flock = fcntl.LOCK_EX, fcntl.LOCK_NB, staticmethod(locked)

    monkeypatch.setattr(output_folder, "fcntl", Locks)
    with pytest.raises(BadInputError, match="another run has just written"), staged_output(out):
        pass
    assert (out / "result").read_text() == "whole"


def test_all_of_a_result_is_synced_before_it_gets_its_name(tmp_path, monkeypatch):
    """After a power cut too, what has the name of a result must be one."""
    out, events = tmp_path / "out", []
    rename, fsync = Path.rename, os.fsync

    def synced(descriptor):
        events.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    def renamed(path, target):
        events.append("named")
        return rename(path, target)

    with staged_output(out) as staging:
        (staging / "alignez").mkdir()
        files = [staging / "config.json", staging / "alignez" / "manifest.json"]
        for file in files:
            file.write_text("x")
        monkeypatch.setattr(os, "fsync", synced)
        monkeypatch.setattr(Path, "rename", renamed)
        publish(staging, out, failed=False)
    before = events[: events.index("named")]
    assert {*files, staging, staging / "alignez"} <= set(before)
    assert events[-1] == tmp_path


def test_what_is_linked_to_the_base_is_no_space_that_a_killed_run_took(tmp_path, monkeypatch):
    left = tmp_path / ".out.partial"
    (left / "alignez").mkdir(parents=True)
    (left / "alignez" / "journal.jsonl").write_text("{}\n")
    (left / "one.safetensors").write_bytes(bytes(100_000))
    (tmp_path / "base").write_bytes(bytes(200_000))
    os.link(tmp_path / "base", left / "two.safetensors")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=50_000))
    check_space(tmp_path / "out", 140_000)  # 100 000 of which are there
    with pytest.raises(BadInputError, match="no space left"):
        check_space(tmp_path / "out", 200_000)
