"""Files put together from tensors of another and from new ones."""

import tracemalloc

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from alignez_bake.errors import BadInputError
from alignez_bake.safetensors_io import read_header, write_tensors
from alignez_bake.safetensors_io.file_access import BLOCK_BYTES
from alignez_bake.safetensors_io.writer import Part, assemble_file
from tests.safetensors_io.comparing import assert_equal, leftovers, read_all

BF16 = np.dtype(ml_dtypes.bfloat16)


def stored(header, name):
    """The part that copies a tensor of a file."""
    return Part(name, header.entries[name].dtype, header.entries[name].shape)


def made(name, array, dtype="F32"):
    """The part that writes values of ours."""
    return Part(name, dtype, array.shape, lambda: array)


def test_all_tensors_of_a_file_with_its_metadata_are_the_file_again(source, tmp_path):
    header = read_header(source)
    found = assemble_file(header, tmp_path / "target", [stored(header, name) for name in header.entries])
    assert (tmp_path / "target").read_bytes() == source.read_bytes()
    assert found == read_header(tmp_path / "target")


def test_copied_and_new_tensors_lie_in_the_order_given(source, tmp_path, tensors):
    header = read_header(source)
    new = {"first": np.arange(4.0), "last": np.ones((2, 3), np.float32)}
    parts = [
        made("first", new["first"], "F64"),
        stored(header, "fp64"),
        made("last", new["last"]),
        stored(header, "bf16"),
    ]
    found = assemble_file(header, tmp_path / "target", parts)
    assert list(found.entries) == [part.name for part in parts]
    assert found.metadata == {"format": "pt"}
    assert_equal(read_all(tmp_path / "target"), new | {name: tensors[name] for name in ("fp64", "bf16")})
    safetensors.deserialize((tmp_path / "target").read_bytes())


def test_a_copy_is_bytes_also_of_what_numpy_cannot_read(make_file, tmp_path):
    path = make_file({"w": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}, b"\x38")
    header = read_header(path)
    assemble_file(header, tmp_path / "target", [made("new", np.ones(1)), stored(header, "w")])
    assert (tmp_path / "target").read_bytes().endswith(b"\x38")


def test_parts_are_sorted_where_one_would_be_out_of_line(source, tmp_path):
    header = read_header(source)
    parts = [
        made("half", np.ones(1), "F16"),
        made("byte", np.ones(2, np.uint8), "U8"),
        made("double", np.ones(2), "F64"),
    ]
    found = assemble_file(header, tmp_path / "target", parts)
    assert list(found.entries) == ["double", "half", "byte"]
    got = read_all(tmp_path / "target")
    assert all(entry.begin % got[entry.name].itemsize == 0 for entry in found.entries.values())
    assert_equal(got, {"half": np.ones(1, np.float16), "byte": np.ones(2, np.uint8), "double": np.ones(2)})


@pytest.mark.parametrize(
    ("dtype", "bits", "numpy_dtype"), [("F32", 24, np.float32), ("F16", 11, np.float16), ("BF16", 8, BF16)]
)
def test_values_are_rounded_once_to_the_parts_dtype(dtype, bits, numpy_dtype, source, tmp_path):
    """A little above the middle between two neighbours: rounded twice, by way of fp32, it would come down."""
    above_the_middle = np.array([1 + 2.0**-bits + 2.0**-50])
    assemble_file(read_header(source), tmp_path / "target", [made("w", above_the_middle, dtype)])
    assert_equal(read_all(tmp_path / "target"), {"w": np.array([1 + 2.0 ** (1 - bits)]).astype(numpy_dtype)})


def test_each_value_is_asked_for_once_and_released_before_the_next(tmp_path):
    size = 3 * BLOCK_BYTES
    write_tensors(tmp_path / "source", {"w": np.zeros(1, np.float32)})
    asked = []

    def values(index):
        asked.append(index)
        return np.full(size // 4, index, np.float32)

    parts = [Part(f"w{index}", "F32", (size // 4,), lambda index=index: values(index)) for index in range(5)]
    header = read_header(tmp_path / "source")
    tracemalloc.start()
    try:
        assemble_file(header, tmp_path / "target", parts)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert asked == list(range(5))
    assert peak < size + 2.5 * BLOCK_BYTES


def test_a_file_may_be_assembled_from_itself(source, tensors):
    header = read_header(source)
    assemble_file(header, source, [made("new", np.ones(3)), *(stored(header, name) for name in header.entries)])
    assert_equal(read_all(source), tensors | {"new": np.ones(3, np.float32)})


def test_an_overflow_is_named_and_leaves_nothing(source, tmp_path):
    header = read_header(source)
    with pytest.raises(BadInputError, match=r"'big' holds 70000.0, which overflows F16.*BF16"):
        assemble_file(header, tmp_path / "target", [made("fine", np.ones(2)), made("big", np.array([7e4]), "F16")])
    assert not (tmp_path / "target").exists()
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (Part("absent", "F32", (1,)), r"no tensor 'absent' of F32 \(1,\)"),
        (Part("bf16", "F32", (5, 7)), r"no tensor 'bf16' of F32"),
        (Part("bf16", "BF16", (7, 5)), r"no tensor 'bf16' of BF16 \(7, 5\)"),
        (Part("w", "F32", (2,), lambda: np.ones(3)), r"values of 'w' have shape \(3,\), not \(2,\)"),
        (Part("w", "F32", (4,), lambda: np.ones((2, 2))), r"values of 'w' have shape \(2, 2\)"),
        (Part("w", "F32", (2,), lambda: np.ones(2, int)), "given as I64, but is to be F32"),
        (Part("__metadata__", "F32", (1,), lambda: np.ones(1)), "__metadata__"),
    ],
)
def test_wrong_parts_are_our_own_fault_and_leave_nothing(part, words, source, tmp_path):
    with pytest.raises(ValueError, match=words) as caught:
        assemble_file(read_header(source), tmp_path / "target", [part])
    assert not isinstance(caught.value, BadInputError)
    assert not (tmp_path / "target").exists()
    assert leftovers(tmp_path) == []


def test_a_source_that_changed_is_refused_when_it_is_copied_from(source, tmp_path):
    header = read_header(source)
    safetensors.numpy.save_file({"w": np.zeros(4)}, source)
    with pytest.raises(BadInputError, match="changed after its header was read"):
        assemble_file(header, tmp_path / "target", [stored(header, "bf16")])
    assert not (tmp_path / "target").exists()
    assert leftovers(tmp_path) == []
