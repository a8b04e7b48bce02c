"""Writing: byte equality with what must stay, agreement with the library on what is new."""

import tracemalloc

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from alignez_bake.errors import BadInputError
from alignez_bake.safetensors_io import read_header, write_tensors
from alignez_bake.safetensors_io.file_access import BLOCK_BYTES
from tests.safetensors_io.comparing import assert_equal, leftovers, read_all

BF16 = np.dtype(ml_dtypes.bfloat16)


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


def test_a_file_that_is_replaced_is_not_written_into(tmp_path):
    write_tensors(tmp_path / "a", {"w": np.ones(2)})
    (tmp_path / "link").hardlink_to(tmp_path / "a")
    before = (tmp_path / "link").read_bytes()
    write_tensors(tmp_path / "a", {"w": np.zeros(2)})
    assert_equal(read_all(tmp_path / "a"), {"w": np.zeros(2)})
    assert (tmp_path / "link").read_bytes() == before


@pytest.mark.parametrize("dtype", ["<f4", ">f4"])
def test_memory_beside_the_arrays_is_bounded_by_blocks(dtype, tmp_path):
    """Also where they are written in another order than they lie in, or in the other byte order."""
    array = np.zeros((6, BLOCK_BYTES // 8), dtype).T  # three blocks
    tracemalloc.start()
    try:
        write_tensors(tmp_path / "a", {"w": array})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2.5 * BLOCK_BYTES
