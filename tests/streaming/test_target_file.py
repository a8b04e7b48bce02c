"""Writes past the system's cache, and through it where there is no other way."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os

import numpy as np
import pytest

from alignez_bake.streaming import target_file
from alignez_bake.streaming.buffers import ALIGNMENT, Buffers

MEMORY = Buffers(1, 8 * ALIGNMENT).take()
MEMORY[:] = np.random.default_rng(5).integers(1, 256, len(MEMORY))


@pytest.fixture
def descriptor(tmp_path):
    number = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield number
    os.close(number)


def is_direct(descriptor):
    return bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT)


def test_a_disk_that_refuses_direct_writes_is_written_through_the_cache(descriptor, monkeypatch, tmp_path):
    target_file.pass_by_cache(descriptor)
    if not is_direct(descriptor):
        pytest.skip("this file system has no direct writes")
    pwrite = os.pwrite

    def refuses(descriptor, data, offset):
        if is_direct(descriptor):
            raise OSError(errno.EINVAL, "Invalid argument")
        return pwrite(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", refuses)
    target_file.write_all(descriptor, MEMORY.data, 0)
    assert not is_direct(descriptor)
    assert (tmp_path / "file").read_bytes() == MEMORY.tobytes()


def test_an_invalid_write_through_the_cache_is_an_error(descriptor, monkeypatch):
    def refuses(descriptor, data, offset):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "pwrite", refuses)
    with pytest.raises(OSError, match="Invalid argument"):
        target_file.write_all(descriptor, MEMORY.data, 0)


def test_a_file_system_without_direct_writes(descriptor, monkeypatch):
    call = fcntl.fcntl

    def refuses(descriptor, command, argument=0):
        if command == fcntl.F_SETFL:
            raise OSError(errno.EINVAL, "Invalid argument")
        return call(descriptor, command, argument)

    monkeypatch.setattr(fcntl, "fcntl", refuses)
    target_file.pass_by_cache(descriptor)
    assert not is_direct(descriptor)


def test_a_buffer_begins_at_a_boundary_and_comes_back():
    buffers = Buffers(2, 3 * ALIGNMENT)
    first, second = buffers.take(), buffers.take()
    assert {len(first), len(second)} == {3 * ALIGNMENT}
    assert first.ctypes.data % ALIGNMENT == second.ctypes.data % ALIGNMENT == 0
    buffers.give_back(first)
    assert buffers.take() is first


def test_room_is_taken_without_touching_what_is_there(descriptor, tmp_path):
    os.pwrite(descriptor, b"there", 0)
    target_file.reserve(descriptor, 3 * ALIGNMENT + 1)
    data = (tmp_path / "file").read_bytes()
    assert data.rstrip(b"\0") == b"there"
    assert len(data) in {5, 3 * ALIGNMENT + 1}  # not every file system can


def test_too_little_room_is_an_error(descriptor):
    with pytest.raises(OSError, match=r"space|large"):
        target_file.reserve(descriptor, 1 << 60)


def test_a_file_system_that_cannot_take_room(descriptor, monkeypatch):
    class Library:
        @staticmethod
        def fallocate(*_):
            ctypes.set_errno(errno.EOPNOTSUPP)
            return -1

    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Library)
    target_file.reserve(descriptor, ALIGNMENT)
    assert os.fstat(descriptor).st_size == 0
