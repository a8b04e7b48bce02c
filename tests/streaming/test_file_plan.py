"""Plans of weight files: header, order, offsets, and what of the base passes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from alignez_bake.safetensors_io.header import read_header
from alignez_bake.safetensors_io.writer import write_tensors
from alignez_bake.streaming.file_plan import plan_file
from alignez_bake.streaming.segments import CastTensor, CopiedTensor, NewTensor

VALUES = {
    "wide": np.arange(3, dtype=np.float64),
    "b": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a": np.arange(5, dtype=np.float16),
    "bytes": np.arange(3, dtype=np.uint8),
}


@pytest.fixture
def header(tmp_path):
    write_tensors(tmp_path / "model.safetensors", VALUES, {"format": "pt", "by": "someone"})
    return read_header(tmp_path / "model.safetensors")


def copies(header):
    return [CopiedTensor(header, entry) for entry in header.entries.values()]


def new(name, shape, dtype="F32"):
    return NewTensor(name, dtype, shape, lambda: np.zeros(shape))


def parsed(head):
    length = int.from_bytes(head[:8], "little")
    assert len(head) == 8 + length
    assert length % 8 == 0
    return json.loads(head[8:])


def test_all_copies_are_the_base(header):
    plan = plan_file("model.safetensors", header, copies(header))
    assert plan.is_the_base
    assert plan.is_in_place
    assert plan.size == header.file_size
    assert plan.head == plan.base_head == header.path.read_bytes()[: len(plan.head)]


def test_a_header_that_says_the_same_stays_with_its_padding(tmp_path):
    """Another writer's spaces, order of keys and escapes."""
    text = b'{"a":{"data_offsets":[0,4],"shape":[1],"dtype":"F32"},  "__metadata__":{"x":"\\u00e9"}}' + b" " * 11
    path = tmp_path / "odd.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    header = read_header(path)
    plan = plan_file("odd.safetensors", header, copies(header))
    assert plan.head == path.read_bytes()[:-4]


def test_a_new_tensor_changes_the_header_and_keeps_the_metadata(header):
    segments = [*copies(header), new("more", (2,), "F16")]
    plan = plan_file("model.safetensors", header, segments)
    entries = parsed(plan.head)
    assert entries.pop("__metadata__") == {"format": "pt", "by": "someone"}
    assert set(entries) == {*VALUES, "more"}
    assert not plan.is_the_base
    end = 0
    for segment in plan.segments:
        begin, stop = entries[segment.name]["data_offsets"]
        width = {"F64": 8, "F32": 4, "F16": 2, "U8": 1}[segment.dtype]
        assert begin == end
        assert (begin % width, stop - begin) == (0, width * int(np.prod(segment.shape)))
        end = stop
    assert plan.size == len(plan.head) + end


def test_offsets_are_those_of_the_header(header):
    plan = plan_file("model.safetensors", header, copies(header))
    for number, segment in enumerate(plan.segments):
        assert plan.offset(number) == len(plan.head) + header.entries[segment.name].begin
    assert plan.offset(len(plan.segments)) == plan.size
    assert plan.offset(-1) is None
    assert plan.offset(len(plan.segments) + 1) is None


def test_what_a_narrower_tensor_would_push_off_its_place_is_sorted(tmp_path):
    """A float32 behind one value of float16 could not be read in place."""
    write_tensors(tmp_path / "m.safetensors", {"a": np.zeros(1, np.float32), "b": np.zeros(1, np.float32)})
    header = read_header(tmp_path / "m.safetensors")
    first, second = header.entries.values()
    plan = plan_file("m.safetensors", header, [CastTensor(header, first, "F16"), CopiedTensor(header, second)])
    assert [segment.dtype for segment in plan.segments] == ["F32", "F16"]
    assert not plan.is_in_place


def test_what_does_not_lie_where_it_lay_is_noticed(header):
    segments = copies(header)
    assert not plan_file("model.safetensors", header, segments[:-1]).is_in_place
    swapped = [segments[1], segments[0], *segments[2:]]
    assert not plan_file("model.safetensors", header, swapped).is_in_place
    cast = CastTensor(header, header.entries["a"], "BF16")  # as wide as it was
    others = [segment for segment in segments if segment.name != "a"]
    assert not plan_file("model.safetensors", header, [*others[:2], cast, *others[2:]]).is_in_place
    made = NewTensor("a", "F16", (5,), lambda: np.zeros(5))  # of nothing of the base
    assert not plan_file("model.safetensors", header, [*others[:2], made, *others[2:]]).is_in_place


@pytest.mark.parametrize("step", [1, 7, 64, 10_000])
def test_parts_are_all_of_it_in_order(step, header):
    segments = [*copies(header), new("none", (0, 3)), new("more", (2,), "F16")]
    plan = plan_file("model.safetensors", header, segments)
    found = [part for begin in range(0, plan.size, step) for part in plan.parts(begin, min(begin + step, plan.size))]
    for number, (low, high) in enumerate(zip(plan.offsets, plan.offsets[1:], strict=False)):
        pieces = [(begin, end) for segment, begin, end in found if segment == number]
        assert [begin for begin, _ in pieces] == [0, *(end for _, end in pieces)][: len(pieces)]
        assert sum(end - begin for begin, end in pieces) == high - low
    assert [segment for segment, *_ in found] == sorted(segment for segment, *_ in found)


def test_a_tensor_without_bytes_has_no_place_in_the_order(tmp_path):
    write_tensors(tmp_path / "m.safetensors", {"a": np.zeros((0, 4), np.float32), "b": np.zeros(3, np.float32)})
    header = read_header(tmp_path / "m.safetensors")
    plan = plan_file("m.safetensors", header, copies(header))
    assert plan.is_in_place
    assert plan.is_the_base


def test_a_tensor_given_twice_is_our_fault(header):
    with pytest.raises(ValueError, match="given twice"):
        plan_file("model.safetensors", header, [*copies(header), copies(header)[0]])
