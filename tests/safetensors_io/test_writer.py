"""Writing: byte equality with what must stay, agreement with the library on what is new."""

import tracemalloc

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from alignez_bake.errors import BadInputError
from alignez_bake.safetensors_io import (
    copy_with_replacements,
    read_header,
    write_tensors,
)
from alignez_bake.safetensors_io.file_access import BLOCK_BYTES, read_tensor
from tests.safetensors_io.comparing import assert_equal, leftovers, read_all

BF16 = np.dtype(ml_dtypes.bfloat16)


# write_tensors


def test_bytes_are_those_of_the_library(tmp_path, tensors):
    tensors['odd "name" é\n'] = np.arange(3, dtype=np.int8)
    header = write_tensors(tmp_path / "a.safetensors", tensors, {"format": "pt"})
    data = (tmp_path / "a.safetensors").read_bytes()
    assert data == safetensors.numpy.save(tensors, {"format": "pt"})
    assert header == read_header(tmp_path / "a.safetensors")
    assert header.data_offset % 8 == 0


def test_bytes_do_not_depend_on_the_order_given(tmp_path, tensors):
    write_tensors(tmp_path / "a", tensors)
    write_tensors(tmp_path / "b", dict(reversed(tensors.items())))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_library_reads_what_we_write(tmp_path, tensors):
    write_tensors(tmp_path / "a.safetensors", tensors)
    torch = pytest.importorskip("torch")
    loaded = pytest.importorskip("safetensors.torch").load_file(tmp_path / "a.safetensors")
    assert loaded.keys() == tensors.keys()
    for name, array in tensors.items():
        got = loaded[name]
        assert tuple(got.shape) == array.shape
        assert got.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() == array.tobytes()


def test_nothing_and_metadata_alone(tmp_path):
    assert write_tensors(tmp_path / "a", {}).entries == {}
    assert safetensors.numpy.load((tmp_path / "a").read_bytes()) == {}
    assert write_tensors(tmp_path / "b", {}, {"k": "v"}).metadata == {"k": "v"}


@settings(deadline=None)
@given(
    st.dictionaries(
        st.text(max_size=5).filter(lambda name: name != "__metadata__"),
        st.tuples(
            st.sampled_from(["f8", "f4", "f2", "i8", "u1", "?", BF16, ml_dtypes.float8_e5m2]),
            st.lists(st.integers(0, 3), max_size=3),
        ),
        max_size=4,
    )
)
def test_round_trip(tmp_path_factory, specs):
    rng = np.random.default_rng(0)
    arrays = {name: rng.integers(0, 2, size=shape).astype(dtype) for name, (dtype, shape) in specs.items()}
    path = tmp_path_factory.mktemp("round") / "a"
    write_tensors(path, arrays)
    assert_equal(read_all(path), {name: np.asarray(array) for name, array in arrays.items()})
    assert {name for name, _ in safetensors.deserialize(path.read_bytes())} == arrays.keys()


@pytest.mark.parametrize("dtype", [BF16, np.float32, np.int64])
def test_any_memory_layout(tmp_path, dtype):
    base = np.arange(2 * 3 * 4).reshape(2, 3, 4).astype(dtype)
    arrays = {
        "transposed": base.T,
        "permuted": base.transpose(1, 0, 2),
        "strided": base[:, ::2],
        "reversed": base[::-1],
        "broadcast": np.broadcast_to(base[0, 0], (3, 4)),
    }
    write_tensors(tmp_path / "a", arrays)
    assert_equal(read_all(tmp_path / "a"), {name: np.ascontiguousarray(array) for name, array in arrays.items()})


def test_big_endian_arrays_become_little_endian(tmp_path):
    write_tensors(tmp_path / "a", {"w": np.arange(3, dtype=">f4")})
    assert_equal(read_all(tmp_path / "a"), {"w": np.arange(3, dtype="<f4")})


def test_what_the_format_has_no_place_for(tmp_path):
    with pytest.raises(ValueError, match="complex128"):
        write_tensors(tmp_path / "a", {"w": np.zeros(1, dtype=np.complex128)})
    with pytest.raises(ValueError, match="__metadata__"):
        write_tensors(tmp_path / "a", {"__metadata__": np.zeros(1)})
    with pytest.raises(ValueError, match="maps strings to strings"):
        write_tensors(tmp_path / "a", {}, {"step": 1})
    with pytest.raises(ValueError, match="surrogate"):
        write_tensors(tmp_path / "a", {"\ud800": np.zeros(1)})
    assert list(tmp_path.iterdir()) == []


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(BadInputError, match=r"cannot be written \(No such file or directory\)"):
        write_tensors(tmp_path / "absent" / "a", {})
    (tmp_path / "folder").mkdir()
    with pytest.raises(BadInputError, match="folder cannot be written"):
        write_tensors(tmp_path / "folder", {"w": np.ones(2)})
    assert leftovers(tmp_path) == []
    (tmp_path / "a.partial").write_bytes(b"left by a crash")
    (tmp_path / "a").write_bytes(b"old")
    write_tensors(tmp_path / "a", {"w": np.ones(2)})
    assert_equal(read_all(tmp_path / "a"), {"w": np.ones(2)})
    assert leftovers(tmp_path) == []


# copy_with_replacements


def changed_bytes(header, before, after):
    """Names of tensors whose bytes differ; header and length must not."""
    assert len(before) == len(after)
    assert before[: header.data_offset] == after[: header.data_offset]
    before, after = before[header.data_offset :], after[header.data_offset :]
    return {e.name for e in header.entries.values() if before[e.begin : e.end] != after[e.begin : e.end]}


@pytest.mark.parametrize("kind", ["mapping", "function"])
def test_only_the_replaced_ranges_change(source, tmp_path, tensors, kind):
    new = {name: tensors[name] + tensors[name].dtype.type(1) for name in ("bf16", "fp64", "scalar")}
    target = tmp_path / "target.safetensors"
    header = copy_with_replacements(source, target, new if kind == "mapping" else new.get)
    before, after = source.read_bytes(), target.read_bytes()
    assert changed_bytes(header, before, after) == set(new)
    assert_equal(read_all(target), tensors | new)


def test_a_copy_without_replacements_is_equal_and_odd_headers_stay(make_file, tmp_path):
    b = b'{ "b": {"data_offsets": [1, 3], "shape": [2], "dtype": "U8"},\n'
    text = b + b' "a": {"dtype":"BOOL","shape":[],"data_offsets":[0,1]}}   '
    source = make_file(text, b"\x01xy")
    copy_with_replacements(read_header(source), tmp_path / "target", {})
    assert (tmp_path / "target").read_bytes() == source.read_bytes()
    copy_with_replacements(source, tmp_path / "target", {"b": np.frombuffer(b"zz", np.uint8)})
    assert (tmp_path / "target").read_bytes() == source.read_bytes()[:-2] + b"zz"


def test_the_function_is_asked_in_the_order_of_the_data(source, tmp_path):
    asked = []
    copy_with_replacements(source, tmp_path / "target", asked.append)
    assert asked == list(read_header(source).entries)


def test_a_transposed_replacement_is_written_in_c_order(source, tmp_path, tensors):
    new = np.asfortranarray(tensors["bf16"])[::-1]
    copy_with_replacements(source, tmp_path / "target", {"bf16": new})
    assert_equal(read_all(tmp_path / "target"), tensors | {"bf16": np.ascontiguousarray(new)})


def test_a_file_may_replace_itself_and_its_hard_link_stays(source, tmp_path, tensors):
    (tmp_path / "link").hardlink_to(source)
    before = source.read_bytes()
    copy_with_replacements(source, source, {"fp64": tensors["fp64"] + 1})
    assert_equal(read_all(source), tensors | {"fp64": tensors["fp64"] + 1})
    assert (tmp_path / "link").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        ("bf16", np.zeros((5, 7), np.float32), "'bf16' is float32"),
        ("bf16", np.zeros((7, 5), BF16), r"\(7, 5\).*stores BF16 \(5, 7\)"),
        ("bf16", np.zeros(35, BF16), r"\(35,\)"),
        ("absent", np.zeros(1), "no tensor 'absent'"),
    ],
)
def test_wrong_replacements_are_refused_and_nothing_is_left(source, tmp_path, name, array, words):
    with pytest.raises(ValueError, match=words):
        copy_with_replacements(source, tmp_path / "target", {name: array})
    assert not (tmp_path / "target").exists()
    assert leftovers(tmp_path) == []


def test_a_source_that_changes_is_refused_and_nothing_is_left(source, tmp_path):
    header = read_header(source)
    safetensors.numpy.save_file({"w": np.zeros(4)}, source)
    with pytest.raises(BadInputError, match="changed after its header was read"):
        copy_with_replacements(header, tmp_path / "target", {})
    assert not (tmp_path / "target").exists()
    assert leftovers(tmp_path) == []


def test_memory_is_bounded_by_one_tensor_and_a_block(tmp_path):
    size = 3 * BLOCK_BYTES
    source, target = tmp_path / "source", tmp_path / "target"
    write_tensors(source, {f"w{i}": np.full(size // 4, i, np.float32) for i in range(8)})
    header = read_header(source)

    def peak(action):
        tracemalloc.start()
        try:
            action()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(lambda: copy_with_replacements(header, target, {})) < 2.5 * BLOCK_BYTES
    replace = peak(
        lambda: copy_with_replacements(header, target, lambda name: read_tensor(header, header.entries[name]))
    )
    assert replace < size + 2.5 * BLOCK_BYTES
