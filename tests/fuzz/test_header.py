"""The header reader takes any bytes: it agrees with the safetensors library, or refuses with our own error."""

from __future__ import annotations

import struct

import pytest

from alignez_bake.safetensors_io.dtypes import BY_NAME
from alignez_bake.safetensors_io.file_access import iter_range, read_tensor
from alignez_bake.safetensors_io.header import read_header
from tests.fuzz.agreement import library_tensors
from tests.fuzz.running import SHORT_AND_LONG, hold_for_each, read_or_refused, sound_ones_pass
from tests.fuzz.strategies import ANY_BYTES, header_files


@pytest.fixture
def check(tmp_path, hooks):
    """`check(data)`: whether a file of these bytes is accepted, which is held against the library."""
    path = tmp_path / "model.safetensors"

    def read():
        header = read_header(path)
        return header, {
            name: b"".join(iter_range(header, entry.begin, entry.end, 5))
            if BY_NAME[entry.dtype].numpy is None
            else read_tensor(header, entry).tobytes()
            for name, entry in header.entries.items()
        }

    def check(data):
        path.write_bytes(data)
        found = read_or_refused(read, hooks, path, size=len(data), allowed=(path,))
        if found is None:
            return False
        header, data_of = found
        tensors, metadata = library_tensors(path)
        assert {name: (e.dtype, e.shape, data_of[name]) for name, e in header.entries.items()} == tensors
        assert header.metadata == metadata
        assert all(header.data_offset + entry.end <= len(data) for entry in header.entries.values())
        return True

    return check


@SHORT_AND_LONG
def test_any_bytes(check, examples):
    hold_for_each(ANY_BYTES, check, examples)


@SHORT_AND_LONG
def test_sound_files_and_damaged_ones(check, examples):
    sound_ones_pass(header_files(), check, examples)


WIDE = {
    "arrays": b'{"a":[' + b"[]," * 100_000 + b"[]]}",
    "objects": b'{"a":[' + b"{}," * 100_000 + b"{}]}",
    "keys": b"{" + b",".join(b'"%x":{}' % i for i in range(50_000)) + b"}",
    "metadata": b'{"__metadata__":{' + b",".join(b'"%x":""' % i for i in range(50_000)) + b"}}",
    "strings": b'{"a":["' + "\u00e9".encode() + b'"' + ',"\u00e9"'.encode() * 50_000 + b"]}",
    "wide characters": b'{"a":"' + "\U0001f600".encode() * 100_000 + b'"}',
    "one wide character": b'{"a":"' + "\U0001f600".encode() + b"a" * 400_000 + b'"}',
    "escapes": b'{"a":"' + b"\\ud83d\\ude00" * 50_000 + b'"}',
    "shape": b'{"a":{"dtype":"U8","data_offsets":[0,1],"shape":[' + b"1," * 100_000 + b"1]}}",
    "floats": b'{"a":[' + b"1e1," * 100_000 + b"1]}",
    "tensors": b"{"
    + b",".join(b'"%x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % i for i in range(3_000))
    + b"}",
}


@pytest.mark.parametrize("case", WIDE)
def test_memory_is_bounded_by_the_size_of_the_json(check, case):
    assert check(struct.pack("<Q", len(WIDE[case])) + WIDE[case]) == (case in {"metadata", "tensors"})
