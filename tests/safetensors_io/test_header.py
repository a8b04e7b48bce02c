"""The header's reader accepts what the safetensors library accepts, and answers everything else in one line."""

import os
import struct
import tracemalloc

import pytest
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save_file

from alignez_bake.errors import BadInputError
from alignez_bake.safetensors_io import read_header
from alignez_bake.safetensors_io.dtypes import BY_NAME

U8 = {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}


def tensor(**changes):
    return {"a": U8 | changes}


def test_reads_what_the_library_wrote(tmp_path, tensors):
    path = tmp_path / "model.safetensors"
    save_file(tensors, path, metadata={"format": "pt", "note": "é"})
    header = read_header(path)
    data = path.read_bytes()

    assert header.metadata == {"format": "pt", "note": "é"}
    assert header.file_size == len(data)
    assert header.data_offset == 8 + len(header.header_bytes)
    assert data[8 : header.data_offset] == header.header_bytes
    assert header.data_bytes == sum(array.nbytes for array in tensors.values())
    assert header.entries.keys() == tensors.keys()
    for name, array in tensors.items():
        entry = header.entries[name]
        assert entry.shape == array.shape
        assert BY_NAME[entry.dtype].numpy == array.dtype
        assert data[header.data_offset :][entry.begin : entry.end] == array.tobytes()


def test_entries_are_in_file_order_and_json_order_is_kept(make_file):
    a = {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]}
    b = {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}
    header = read_header(make_file({"a": a, "b": b}, b"xy"))
    assert list(header.entries) == ["b", "a"]
    assert header.json_order == ("a", "b")


def test_a_file_without_tensors_is_sound(make_file):
    header = read_header(make_file({}))
    assert header.entries == {}
    assert header.metadata == {}
    assert header.data_bytes == 0


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_knows_every_dtype_of_the_library(name, make_file):
    nbytes = 4 * BY_NAME[name].bits // 8
    path = make_file({"a": {"dtype": name, "shape": [4], "data_offsets": [0, nbytes]}}, bytes(nbytes))
    deserialize(path.read_bytes())
    assert read_header(path).entries["a"].dtype == name


def test_has_the_same_dtypes_as_the_library():
    data = struct.pack("<Q", 59) + b'{"a":{"dtype":"NOPE","shape":[1],"data_offsets":[0,1]}}    ' + b"x"
    with pytest.raises(SafetensorError) as caught:
        deserialize(data)
    expected = str(caught.value).partition("expected one of ")[2].partition(" at line")[0]
    assert list(BY_NAME) == [name.strip("`") for name in expected.split(", ")]


HEADERS = {
    "unknown dtype": (tensor(dtype="Q4_K"), b"ab", ["'a'", "unknown dtype 'Q4_K'", "BF16"]),
    "dtype not a string": (tensor(dtype=["U8"]), b"ab", ["unknown dtype"]),
    "negative dimension": (tensor(shape=[-2]), b"ab", ["[-2]", "none negative"]),
    "two negative dimensions": (tensor(shape=[-1, -2]), b"ab", ["none negative"]),
    "fractional dimension": (tensor(shape=[2.0]), b"ab", ["[2.0]", "integers"]),
    "boolean dimension": (tensor(shape=[True, 2]), b"ab", ["True", "integers"]),
    "text dimension": (tensor(shape=["2"]), b"ab", ["integers"]),
    "shape not a list": (tensor(shape=2), b"ab", ["shape 2"]),
    "65 dimensions": (tensor(shape=[1] * 65, data_offsets=[0, 1]), b"a", ["at most 64"]),
    "size beyond 64 bits": (tensor(shape=[2**62, 2**62]), b"ab", ["more than any memory"]),
    "product that wraps to the size": (tensor(shape=[2**63 + 1, 2]), b"ab", ["more than any memory"]),
    "empty but beyond 64 bits": (tensor(shape=[2**62, 2**62, 0], data_offsets=[0, 0]), b"", ["more than any memory"]),
    "integer of 5000 digits": (b'{"a":{"dtype":"U8","shape":[' + b"9" * 5000 + b"]}}", b"", ["not valid JSON"]),
    "offsets end before they begin": (tensor(data_offsets=[2, 0]), b"ab", ["[2, 0]", "need 2"]),
    "negative offset": (tensor(data_offsets=[-1, 1]), b"ab", ["data_offsets [-1, 1]", "none negative"]),
    "offsets of hundreds of digits": (tensor(data_offsets=[10**400, 10**400 + 2]), b"ab", ["none negative or beyond"]),
    "three offsets": (tensor(data_offsets=[0, 1, 2]), b"ab", ["two integers"]),
    "fractional offset": (tensor(data_offsets=[0, 2.0]), b"ab", ["two integers"]),
    "size is not shape times dtype": (tensor(shape=[3]), b"ab", ["2 bytes", "need 3"]),
    "F4 values that end inside of a byte": (tensor(dtype="F4", shape=[3]), b"ab", ["whole bytes"]),
    "a field is missing": ({"a": {"dtype": "U8", "shape": [2]}}, b"ab", ["needs dtype, shape and data_offsets"]),
    "an unknown field": (tensor(scale=1), b"ab", ["'scale'", "nothing else"]),
    "a tensor that is no object": ({"a": [0, 2]}, b"ab", ["needs dtype, shape and data_offsets"]),
    "data cut short": (tensor(), b"a", ["truncated", "'a'", "ends at byte 2", "holds 1", "download"]),
    "a rest after the last tensor": (tensor(), b"abc", ["1 bytes after the last tensor"]),
    "data without tensors": ({}, b"abc", ["3 bytes after the last tensor"]),
    "a hole before the first tensor": (tensor(data_offsets=[1, 3]), b"abc", ["hole of 1 bytes before"]),
    "a hole between tensors": ({"a": U8, "b": U8 | {"data_offsets": [3, 5]}}, b"abcde", ["'a'", "'b'", "leave a hole"]),
    "overlapping tensors": ({"a": U8, "b": U8 | {"data_offsets": [1, 3]}}, b"abc", ["'a'", "'b'", "overlap"]),
    "the same data twice": ({"a": U8, "b": U8}, b"ab", ["'a'", "'b'", "overlap"]),
    "an empty tensor inside of another": (
        {"a": U8, "b": {"dtype": "U8", "shape": [0], "data_offsets": [1, 1]}},
        b"ab",
        ["overlap"],
    ),
    "a key given twice": (b'{"a":1,"a":2}', b"", ["'a' is given twice"]),
    "a field given twice": (b'{"a":{"dtype":"U8","dtype":"I8"}}', b"", ["'dtype' is given twice"]),
    "metadata that is no map": ({"__metadata__": [1]}, b"", ["__metadata__", "strings"]),
    "metadata null": ({"__metadata__": None}, b"", ["__metadata__", "strings"]),
    "metadata with a number": ({"__metadata__": {"step": 3}}, b"", ["__metadata__", "'step': 3"]),
    "not an object": (b"[1,2]", b"", ["not a safetensors file"]),
    "leading space": (b" {}", b"", ["not with '{'"]),
    "an empty header": (b"", b"", ["not a safetensors file"]),
    "broken JSON": (b'{"a":', b"", ["not valid JSON"]),
    "text after the JSON": (b"{}{}", b"", ["not valid JSON"]),
    "not UTF-8": (b'{"\xff":1}', b"", ["not valid JSON"]),
    "half of a surrogate pair": (
        b'{"\\ud800":{"dtype":"U8","shape":[],"data_offsets":[0,1]}}',
        b"a",
        ["not valid JSON"],
    ),
    "NaN": (b'{"a":NaN}', b"", ["NaN"]),
    "nested a hundred thousand deep": (b'{"a":' + b"[" * 100_000, b"", ["nested too deeply"]),
}


@pytest.mark.parametrize("case", HEADERS)
def test_refuses_header_with(case, make_file):
    header, data, words = HEADERS[case]
    path = make_file(header, data)
    with pytest.raises(BadInputError) as caught:
        read_header(path)
    message = str(caught.value)
    assert "\n" not in message
    for word in [path.name, *words]:
        assert word in message


FOREIGN = {
    "git-LFS pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 497774208\n",
        ["git-LFS pointer", "git lfs pull"],
    ),
    "HTML page": (b"<!DOCTYPE html>\n<html><body>404 Not Found</body></html>", ["HTML", "download"]),
    "indented HTML page": (b"\n\n  <html><body>404 Not Found</body></html>", ["HTML"]),
    "pickle": (b"\x80\x04\x95\x1f\x00\x00\x00\x00\x00\x00\x00}\x94.", ["pickle", "convert", "run code"]),
    "torch.save archive": (b"PK\x03\x04\x00\x00\x08\x08\x00\x00archive/data.pkl", ["zip", "pickle", "convert"]),
    "GGUF": (b"GGUF\x03\x00\x00\x00" + bytes(16), ["GGUF"]),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(16), ["HDF5"]),
    "JSON": (b'{"error": "Entry not found"}', ["JSON text"]),
    "zeros": (bytes(64), ["not a safetensors file"]),
    "noise": (b"\xde\xad\xbe\xef" * 8, ["truncated or not a safetensors file"]),
    "no bytes": (b"", ["empty", "0 bytes"]),
    "seven bytes": (b"1234567", ["7 bytes", "too few"]),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_names_what_lies_in_a_files_place(case, tmp_path):
    data, words = FOREIGN[case]
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(BadInputError) as caught:
        read_header(path)
    for word in [str(path), *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize("length", [3, 2**31, 100_000_001, 2**63, 2**64 - 1])
def test_length_is_bounded_by_the_file_before_anything_is_allocated(length, make_file):
    path = make_file(b"{}", length=length)
    tracemalloc.start()
    try:
        with pytest.raises(BadInputError, match=rf"length is {length} bytes.*at most 2"):
            read_header(path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_length_is_bounded_at_100_mb_even_in_a_larger_file(tmp_path):
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 100_000_001))
        file.truncate(200_000_000)  # sparse
    with pytest.raises(BadInputError, match=r"length is 100000001 bytes.*at most 100000000"):
        read_header(path)


def test_refuses_what_is_no_file(tmp_path):
    with pytest.raises(BadInputError, match=r"absent.safetensors does not exist"):
        read_header(tmp_path / "absent.safetensors")
    with pytest.raises(BadInputError, match="is a directory"):
        read_header(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(BadInputError, match="symlink to nothing"):
        read_header(tmp_path / "link")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(BadInputError, match="cannot be read"):
        read_header(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadInputError, match="not a regular file"):
        read_header(tmp_path / "pipe")


def test_messages_are_one_short_line_whatever_the_names(make_file):
    name = "evil\n\x1b[31m" + "x" * 100_000
    with pytest.raises(BadInputError) as caught:
        read_header(make_file({name: U8 | {"dtype": "Z" * 100_000}}, b"ab"))
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 1000
