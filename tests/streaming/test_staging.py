"""Bytes that are gathered in aligned pieces are the bytes that came, whatever comes at once and wherever it is cut."""

from __future__ import annotations

import errno
import fcntl
import os

import numpy as np
import pytest

from alignez_bake.streaming import open_file
from alignez_bake.streaming import staging as staging_module
from alignez_bake.streaming.staging import ALIGNMENT, Buffers, Staging, empty_at

RNG = np.random.default_rng(5)
DATA = RNG.integers(1, 256, 7 * ALIGNMENT + 123).astype(np.uint8)


class File:
    """What is written."""

    def __init__(self, buffers):
        self.buffers, self.bytes, self.pieces = buffers, np.zeros(20 * ALIGNMENT, np.uint8), []

    def write(self, pieces):
        for piece in pieces:
            assert piece.offset % ALIGNMENT == piece.size % ALIGNMENT == 0
            assert piece.memory.ctypes.data % ALIGNMENT == 0
            self.bytes[piece.offset : piece.offset + piece.size] = piece.memory[: piece.size]
            self.pieces.append((piece.offset, piece.size))
            if piece.is_buffer:
                self.buffers.give_back(piece.memory)


@pytest.mark.parametrize("step", [1, 999, ALIGNMENT, 3 * ALIGNMENT + 1, len(DATA)])
@pytest.mark.parametrize("size", [ALIGNMENT, 2 * ALIGNMENT, 16 * ALIGNMENT])
@pytest.mark.parametrize("flushed", [None, 3])
def test_bytes_arrive(step, size, flushed):
    file = File(Buffers(1, size))
    staging = Staging(file.buffers, 0, DATA[:50].tobytes())
    for number, begin in enumerate(range(50, len(DATA), step)):
        file.write(staging.add(DATA[begin : begin + step]))
        if flushed is not None and number % flushed == 0 and number < 12:
            file.write(staging.flush(last=False))
            end = begin + step
            np.testing.assert_array_equal(file.bytes[: min(end, len(DATA))], DATA[:end])
    file.write(staging.flush(last=True))
    np.testing.assert_array_equal(file.bytes[: len(DATA)], DATA)
    assert not file.bytes[len(DATA) :].any()
    assert len(file.buffers.take()) == size  # it came back
    if flushed is None:
        assert len(file.pieces) == -(-len(DATA) // size)


def test_a_file_is_gone_on_with_behind_its_last_boundary():
    file = File(Buffers(1, 2 * ALIGNMENT))
    at = 3 * ALIGNMENT
    staging = Staging(file.buffers, at, DATA[at : at + 17].tobytes())
    file.write(staging.add(DATA[at + 17 :]))
    file.write(staging.flush(last=True))
    np.testing.assert_array_equal(file.bytes[at : len(DATA)], DATA[at:])
    assert not file.bytes[:at].any()


def test_a_file_that_waits_for_bytes_holds_no_buffer():
    """So that any number of small files may be open at once."""
    buffers = Buffers(1, ALIGNMENT)
    for _ in range(3):
        Staging(buffers, 0, b"head")
    assert len(buffers.take()) == ALIGNMENT


def test_a_closed_one_gives_its_buffer_back():
    buffers = Buffers(1, ALIGNMENT)
    staging = Staging(buffers, 0, b"")
    assert list(staging.add(DATA[:10])) == []
    staging.close()
    assert len(buffers.take()) == ALIGNMENT


def test_a_head_alone_is_written():
    file = File(Buffers(1, ALIGNMENT))
    staging = Staging(file.buffers, 0, b"head")
    file.write(staging.flush(last=True))
    assert bytes(file.bytes[:5]) == b"head\0"


@pytest.fixture
def descriptor(tmp_path):
    number = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield number
    os.close(number)


def is_direct(descriptor):
    return bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT)


def test_a_disk_that_refuses_direct_writes_is_written_through_the_cache(descriptor, monkeypatch, tmp_path):
    open_file._pass_by_cache(descriptor)
    if not is_direct(descriptor):
        pytest.skip("this file system has no direct writes")
    pwrite = os.pwrite

    def refuses(descriptor, data, offset):
        if is_direct(descriptor):
            raise OSError(errno.EINVAL, "Invalid argument")
        return pwrite(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", refuses)
    open_file._write_all(descriptor, DATA.data, 0)
    assert not is_direct(descriptor)
    assert (tmp_path / "file").read_bytes() == DATA.tobytes()


def test_an_invalid_write_through_the_cache_is_an_error(descriptor, monkeypatch):
    def refuses(descriptor, data, offset):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "pwrite", refuses)
    with pytest.raises(OSError, match="Invalid argument"):
        open_file._write_all(descriptor, DATA.data, 0)


def test_a_file_system_without_direct_writes(descriptor, monkeypatch):
    call = fcntl.fcntl

    def refuses(descriptor, command, argument=0):
        if command == fcntl.F_SETFL:
            raise OSError(errno.EINVAL, "Invalid argument")
        return call(descriptor, command, argument)

    monkeypatch.setattr(fcntl, "fcntl", refuses)
    open_file._pass_by_cache(descriptor)
    assert not is_direct(descriptor)


@pytest.mark.parametrize("offset", [0, 1, 50, ALIGNMENT - 1])
@pytest.mark.parametrize("shift", [0, 1, 2048])
def test_large_blocks_that_lie_right_are_written_as_they_are(offset, shift, monkeypatch):
    monkeypatch.setattr(staging_module, "_WORTH_A_WRITE", ALIGNMENT)
    file = File(Buffers(2, ALIGNMENT))
    staging = Staging(file.buffers, 0, DATA[:offset].tobytes())
    block = empty_at(len(DATA) - offset, offset + shift)
    block[:] = DATA[offset:]
    pieces = []
    for part in (block, block[: 10 * 8]):
        for piece in staging.add(part):
            pieces.append(piece)
            file.write([piece])
    file.write(staging.flush(last=True))
    whole = np.concatenate([DATA, DATA[offset : offset + 80]])
    np.testing.assert_array_equal(file.bytes[: len(whole)], whole)
    assert not file.bytes[len(whole) :].any()
    direct = [piece for piece in pieces if not piece.is_buffer]
    assert all(np.shares_memory(piece.memory, block) for piece in direct)
    assert sum(piece.size for piece in direct) == (0 if shift else (len(DATA) // ALIGNMENT - (offset > 0)) * ALIGNMENT)
