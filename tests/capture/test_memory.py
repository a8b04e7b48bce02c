"""Where statistics lie, and that nothing of them stays."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from alignez_bake.capture import memory as memory_module
from alignez_bake.capture.memory import StatisticsMemory, scratch_folder
from alignez_bake.errors import BadInputError


def test_three_quarters_of_the_bound_stay_in_memory_and_more_is_mapped(tmp_path):
    assert not StatisticsMemory((50_000, 25_000), memory_bytes=100_000, folder=tmp_path).mapped
    assert StatisticsMemory((50_000, 25_001), memory_bytes=100_000, folder=tmp_path).mapped


@pytest.mark.parametrize("memory_bytes", [10**6, 100])
def test_arrays_are_apart_zero_and_keep_their_values(tmp_path, memory_bytes):
    memory = StatisticsMemory((8 * 12, 4 * 5000), memory_bytes=memory_bytes, folder=tmp_path)
    one, two = memory.zeros((3, 4), np.float64), memory.zeros((5000,), np.float32)
    assert one.dtype == np.float64
    assert not one.any()
    assert not two.any()
    one[:] = np.arange(12.0).reshape(3, 4)
    two[:] = 7
    memory.release()
    del memory
    np.testing.assert_array_equal(one, np.arange(12.0).reshape(3, 4))
    assert (two == 7).all()


def test_the_file_has_no_name(tmp_path):
    memory = StatisticsMemory((10_000,), memory_bytes=1, folder=tmp_path)
    memory.zeros((1250,), np.float64)[:] = 1
    assert memory.mapped
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rows", [1, 2, 7, 64])
def test_stripes_are_all_rows_once_within_their_share(tmp_path, rows):
    row_bytes = 800
    mapped = StatisticsMemory((rows * row_bytes,), memory_bytes=4 * 5 * row_bytes, folder=tmp_path)
    mapped = mapped if mapped.mapped else StatisticsMemory((rows * row_bytes,), memory_bytes=4, folder=tmp_path)
    for memory in (StatisticsMemory((), memory_bytes=10), mapped):
        stripes = list(memory.stripes(rows, row_bytes))
        assert [row for first, last in stripes for row in range(first, last)] == list(range(rows))
    if rows == 64:
        assert max(last - first for first, last in mapped.stripes(rows, row_bytes)) == 5
    assert len(list(StatisticsMemory((), memory_bytes=10).stripes(rows, 10**9))) == 2


def test_too_little_room_is_refused_with_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9, 1_500_000))
    with pytest.raises(BadInputError, match=r"no space left in .*: 2\.0 MB are needed, 1\.5 MB are free; .* TMPDIR"):
        StatisticsMemory((2_000_000,), memory_bytes=1000, folder=tmp_path)


def test_room_that_goes_in_the_meantime_is_refused_rather_than_met_later(tmp_path, monkeypatch):
    def no_room(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", no_room)
    with pytest.raises(BadInputError, match=r"No space left on device.*TMPDIR"):
        StatisticsMemory((2_000_000,), memory_bytes=1000, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_and_a_bound_that_is_none(tmp_path):
    with pytest.raises(BadInputError, match=r"can be made in .*missing: No such file"):
        StatisticsMemory((2_000_000,), memory_bytes=1000, folder=tmp_path / "missing")
    with pytest.raises(BadInputError, match="0 bytes of memory"):
        StatisticsMemory((), memory_bytes=0)


def test_large_files_go_where_the_user_says_or_to_a_disk(tmp_path, monkeypatch):
    for name in ("TMPDIR", "TEMP", "TMP"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(memory_module, "_PERSISTENT_TEMPORARY", tmp_path)
    assert scratch_folder() == tmp_path
    monkeypatch.setattr(memory_module, "_PERSISTENT_TEMPORARY", tmp_path / "missing")
    monkeypatch.setattr(memory_module.tempfile, "gettempdir", lambda: "/elsewhere")
    assert scratch_folder() == Path("/elsewhere")
    monkeypatch.setattr(memory_module, "_PERSISTENT_TEMPORARY", tmp_path)
    monkeypatch.setenv("TMPDIR", "/elsewhere")
    assert scratch_folder() == Path("/elsewhere")
