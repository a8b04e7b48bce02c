"""Mapped tensors are the stored ones; what is not the file that was checked is refused."""

from __future__ import annotations

import json
import os
import struct

import ml_dtypes
import numpy as np
import pytest

from alignez_bake.errors import BadInputError
from alignez_bake.immutable_arrays import is_immutable
from alignez_bake.safetensors_io.file_access import check_unchanged
from alignez_bake.safetensors_io.header import read_header
from alignez_bake.safetensors_io.mapped import MappedFile, map_tensors
from alignez_bake.safetensors_io.writer import write_tensors

TENSORS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.arange(4, dtype=ml_dtypes.bfloat16),
    "c": np.zeros((0, 5)),
    "d": np.array(3, dtype=np.int64),
}


@pytest.fixture
def header(tmp_path):
    return write_tensors(tmp_path / "some.safetensors", TENSORS)


def test_the_arrays_are_the_stored_tensors_and_cannot_be_written_into(header):
    found = map_tensors(header)
    assert found.keys() == TENSORS.keys()
    for name, array in found.items():
        assert array.dtype == TENSORS[name].dtype
        assert array.shape == TENSORS[name].shape
        np.testing.assert_array_equal(array, TENSORS[name])
        assert is_immutable(array)


def test_a_file_that_is_replaced_or_deleted_stays_mapped(header, tmp_path):
    found = map_tensors(header)
    write_tensors(header.path, {"a": np.full((2, 3), 9, np.float32)})
    header.path.unlink()
    np.testing.assert_array_equal(found["a"], TENSORS["a"])


def test_a_header_that_is_not_padded_gives_arrays_that_are_not_aligned(tmp_path):
    path = tmp_path / "odd.safetensors"
    text = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    text += b" " * (-len(text) % 8 + 1)
    path.write_bytes(struct.pack("<Q", len(text)) + text + np.array([1, 2], np.float32).tobytes())
    array = map_tensors(read_header(path))["a"]
    assert not array.flags.aligned
    np.testing.assert_array_equal(array, [1, 2])


def test_a_file_that_changed_is_refused(header):
    check_unchanged(header)
    with header.path.open("ab") as file:
        file.write(b"x")
    for read in (map_tensors, check_unchanged):
        with pytest.raises(BadInputError, match="changed after its header was read"):
            read(header)
    header.path.unlink()
    with pytest.raises(BadInputError, match="cannot be read"):
        check_unchanged(header)


def test_values_below_one_byte_have_no_array(tmp_path):
    path = tmp_path / "packed.safetensors"
    text = json.dumps({"a": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"\0\0")
    with pytest.raises(ValueError, match="below one byte"):
        map_tensors(read_header(path))


REWRITES = {
    "other bytes": lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\xff"),
    "more bytes": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "fewer bytes": lambda path: os.truncate(path, path.stat().st_size - 1),
}


@pytest.mark.parametrize("how", REWRITES)
def test_a_file_that_is_written_into_is_noticed(how, header):
    file = MappedFile(header.path, header.identity)
    file.check_not_written_into()
    REWRITES[how](header.path)
    with pytest.raises(BadInputError, match=r"some\.safetensors was written into while it was in use"):
        file.check_not_written_into()


def test_a_file_that_is_replaced_or_deleted_does_no_harm(header):
    file, found = MappedFile(header.path, header.identity), map_tensors(header)
    write_tensors(header.path, {"a": np.zeros(3, np.float32)})
    file.check_not_written_into()
    header.path.unlink()
    file.check_not_written_into()
    np.testing.assert_array_equal(found["a"], TENSORS["a"])
