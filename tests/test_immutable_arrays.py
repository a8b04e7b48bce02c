"""What nobody can write into is shared; everything else is copied into memory that nobody can write into."""

from __future__ import annotations

import mmap

import numpy as np
import pytest

from alignez_bake.immutable_arrays import immutable, is_immutable


@pytest.mark.parametrize(
    "given",
    [np.arange(6.0).reshape(2, 3), np.arange(6.0).reshape(2, 3).T, np.arange(6.0)[::2], np.zeros((0, 3)), np.ones(())],
    ids=["plain", "transposed", "strided", "empty", "scalar"],
)
def test_a_copy_has_the_same_values_and_can_never_be_written_into(given):
    expected = given.copy()
    kept = immutable(given)
    given[...] = 9
    assert kept.dtype == expected.dtype
    assert kept.flags.c_contiguous
    np.testing.assert_array_equal(kept, expected)
    with pytest.raises(ValueError, match="WRITEABLE"):
        kept.setflags(write=True)


def test_what_is_immutable_is_kept_itself():
    kept = immutable(np.ones((4, 4), np.float32))
    assert immutable(kept) is kept
    part = kept[1:3]
    assert immutable(part) is part
    assert immutable(kept[:, :2]) is not kept
    assert not np.shares_memory(immutable(kept[:, :2]), kept)  # not contiguous


def test_a_flag_alone_makes_nothing_immutable():
    array = np.ones(3)
    array.setflags(write=False)
    assert not is_immutable(array)
    kept = immutable(array)
    array.setflags(write=True)
    array[0] = 5
    assert kept[0] == 1


def test_mappings_count_where_they_were_opened_for_reading(tmp_path):
    path = tmp_path / "data"
    path.write_bytes(np.arange(5.0).tobytes())
    with path.open("r+b") as file:
        reading = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        writing = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_WRITE)
    assert is_immutable(np.frombuffer(reading))
    assert not is_immutable(np.frombuffer(writing))
    assert not is_immutable(np.frombuffer(memoryview(writing).toreadonly()))


def test_an_array_that_is_not_aligned_is_copied():
    array = np.frombuffer(b"x" + np.arange(3.0).tobytes(), np.float64, offset=1)
    assert not array.flags.aligned
    kept = immutable(array)
    assert kept.flags.aligned
    np.testing.assert_array_equal(kept, [0, 1, 2])
