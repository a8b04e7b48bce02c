"""Folders: a single file and shards."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from alignez_bake.errors import BadInputError
from alignez_bake.safetensors_io import open_folder
from tests.safetensors_io.folders import INDEX, SHARDS, change_index


def test_single_file(single, tensors):
    model = open_folder(single)
    assert model.files == ("model.safetensors",)
    assert model.index is None
    assert model.names() == list(model) == sorted(tensors)
    assert len(model) == len(tensors)
    assert "fp32" in model
    assert "absent" not in model
    assert model.header("model.safetensors").metadata == {"format": "pt"}
    for name, expected in tensors.items():
        got = model.read(name)
        assert got.dtype == expected.dtype
        assert got.shape == expected.shape == model.entry(name).shape
        assert got.tobytes() == expected.tobytes()
        assert got.flags.writeable
        assert model.file_of(name) == "model.safetensors"


def test_a_read_array_is_the_callers_own(single, tensors):
    model = open_folder(single)
    model.read("fp32")[...] = 0
    np.testing.assert_array_equal(model.read("fp32"), tensors["fp32"])


def test_bytes_and_blocks(single, tensors):
    model = open_folder(single)
    for name, expected in tensors.items():
        data = expected.tobytes()
        assert model.read_bytes_range(name, 0, len(data)) == data
        for size in (1, 3, len(data) or 1, 10**9):
            blocks = list(model.iter_blocks(name, size))
            assert b"".join(blocks) == data
            assert all(len(block) == size for block in blocks[:-1])
            assert all(0 < len(block) <= size for block in blocks)
    assert model.read_bytes_range("uint8", 2, 4) == tensors["uint8"][2:4].tobytes()
    for start, stop in ((-1, 2), (2, 1), (0, 6)):
        with pytest.raises(ValueError, match=r"not in tensor 'uint8' of 5 bytes"):
            model.read_bytes_range("uint8", start, stop)
    with pytest.raises(ValueError, match="no blocks of 0 bytes"):
        list(model.iter_blocks("uint8", 0))


def test_absent_tensor_is_named(single):
    model = open_folder(single)
    for call in (model.read, model.entry, model.file_of, model.iter_blocks):
        with pytest.raises(BadInputError, match=r"no tensor 'h.0.nope' among its 9"):
            call("h.0.nope")


def test_packed_values_cannot_become_an_array_but_their_bytes_can_be_read(make_file, tmp_path):
    make_file({"w": {"dtype": "F4", "shape": [2, 2], "data_offsets": [0, 2]}}, b"ab")
    model = open_folder(tmp_path)
    with pytest.raises(BadInputError, match="'w' has dtype F4, packed below one byte"):
        model.read("w")
    assert b"".join(model.iter_blocks("w")) == b"ab"


def test_float8(make_file, tmp_path):
    values = np.array([1.5, -448.0], dtype=ml_dtypes.float8_e4m3fn)
    make_file({"w": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}, values.tobytes())
    np.testing.assert_array_equal(open_folder(tmp_path).read("w"), values)


def test_shards(sharded):
    folder, arrays = sharded
    model = open_folder(str(folder))
    assert model.files == SHARDS
    assert model.index == folder / INDEX
    assert model.names() == sorted(arrays)
    for i, (name, expected) in enumerate(sorted(arrays.items())):
        assert model.file_of(name) == SHARDS[i // 2]
        np.testing.assert_array_equal(model.read(name), expected)


def test_a_single_file_wins_over_an_index_and_other_weights(sharded):
    folder, _ = sharded
    save_file({"only": np.ones(1)}, folder / "model.safetensors")
    save_file({"other": np.ones(1)}, folder / "consolidated.safetensors")
    (folder / INDEX).write_text("not even JSON")
    assert open_folder(folder).names() == ["only"]


def test_files_that_the_index_does_not_list_are_passed_over(sharded):
    folder, arrays = sharded
    save_file({"other": np.ones(1)}, folder / "consolidated.00.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04")
    assert open_folder(folder).names() == sorted(arrays)


def test_total_size_is_not_relied_upon(sharded):
    folder, arrays = sharded
    change_index(folder, lambda index: index["metadata"].update(total_size="wrong"))
    assert open_folder(folder).names() == sorted(arrays)
    change_index(folder, lambda index: index.pop("metadata"))
    assert open_folder(folder).names() == sorted(arrays)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts handles by way of /proc")
def test_no_handle_stays_open(single, sharded):
    def handles():
        return len(list(Path("/proc/self/fd").iterdir()))

    before = handles()
    models = [open_folder(single), open_folder(sharded[0])]
    for model in models:
        for name in model.names():
            model.read(name)
        next(iter(model.iter_blocks(model.names()[0], 1)))
    assert handles() == before


def test_threads_may_read_at_once(sharded):
    folder, arrays = sharded
    model = open_folder(folder)
    names = model.names() * 50
    with ThreadPoolExecutor(8) as pool:
        for name, got in zip(names, pool.map(model.read, names), strict=True):
            np.testing.assert_array_equal(got, arrays[name])


def test_a_file_that_changes_after_its_header_was_read_is_refused(single):
    model = open_folder(single)
    path = single / "model.safetensors"
    save_file({"fp32": np.zeros(3)}, path)
    for call in (lambda: model.read("fp32"), lambda: list(model.iter_blocks("fp32"))):
        with pytest.raises(BadInputError, match="changed after its header was read"):
            call()
    path.unlink()
    with pytest.raises(BadInputError, match="cannot be read"):
        model.read("fp32")
