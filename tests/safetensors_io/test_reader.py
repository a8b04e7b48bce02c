"""Folders: single file, shards, the hub's cache; and what is no model."""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from alignez_bake.errors import BadInputError
from alignez_bake.safetensors_io import open_folder

INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def change_index(folder, change):
    path = folder / INDEX
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


def refused(path, *words):
    with pytest.raises(BadInputError) as caught:
        open_folder(path)
    message = str(caught.value)
    assert message.isprintable()
    for word in words:
        assert word in message


@pytest.fixture
def single(tmp_path, tensors):
    folder = tmp_path / "single"
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


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


# The index


@pytest.mark.parametrize(
    "name",
    [
        "../outside.safetensors",
        "sub/model.safetensors",
        "/etc/model.safetensors",
        "..",
        "",
        "C:model.safetensors",
        "a\\b.safetensors",
        "a\0.safetensors",
        "weights.bin",
        7,
        None,
    ],
)
def test_shard_names_are_plain(sharded, name):
    folder, _ = sharded
    save_file({"layers.0.weight": np.ones(1)}, folder.parent / "outside.safetensors")
    change_index(folder, lambda index: index["weight_map"].update({"layers.0.weight": name}))
    refused(folder, INDEX, "'layers.0.weight'", "plain name")


def test_a_shard_name_longer_than_the_file_system_allows(sharded):
    folder, _ = sharded
    name = "a" * 300 + ".safetensors"
    change_index(folder, lambda index: index["weight_map"].update({"layers.0.weight": name}))
    refused(folder, str(folder))


def test_missing_shard(sharded):
    folder, _ = sharded
    (folder / SHARDS[1]).unlink()
    refused(folder, SHARDS[1], "is missing", "incomplete")


def test_truncated_shard(sharded):
    folder, _ = sharded
    path = folder / SHARDS[1]
    path.write_bytes(path.read_bytes()[:-1])
    refused(folder, SHARDS[1], "truncated")


def test_git_lfs_shard_and_index(sharded):
    folder, _ = sharded
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    (folder / SHARDS[0]).write_bytes(pointer)
    refused(folder, SHARDS[0], "git-LFS pointer")
    (folder / INDEX).write_bytes(pointer)
    refused(folder, INDEX, "git-LFS pointer")


def test_tensor_that_only_the_shard_has(sharded):
    folder, _ = sharded
    change_index(folder, lambda index: index["weight_map"].pop("layers.3.weight"))
    refused(folder, "'layers.3.weight'", SHARDS[1], "index does not list it")


def test_tensor_that_only_the_index_has(sharded):
    folder, _ = sharded
    change_index(folder, lambda index: index["weight_map"].update({"lm_head.weight": SHARDS[0]}))
    refused(folder, "'lm_head.weight'", SHARDS[0], "is not there")


def test_tensor_in_another_shard_than_the_index_says(sharded):
    folder, _ = sharded
    change_index(folder, lambda index: index["weight_map"].update({"layers.0.weight": SHARDS[1]}))
    refused(folder, "'layers.0.weight'", f"lies in {SHARDS[0]}", f"says {SHARDS[1]}")


def test_tensor_in_two_shards(sharded):
    folder, arrays = sharded
    save_file({f"layers.{i}.weight": arrays[f"layers.{i}.weight"] for i in (1, 2, 3)}, folder / SHARDS[1])
    refused(folder, "'layers.1.weight'", "two files", *SHARDS)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (b"{", "not valid JSON"),
        (b'{"metadata": {"total_size": -1e999}, "weight_map": {}}', "'-1e999' is beyond all floats"),
        (b"[]", "must be an object"),
        (b"{}", "weight_map is None"),
        (b'{"weight_map": {}}', "at least one tensor"),
        (b'{"weight_map": [1]}', "weight_map is [1]"),
        (b'{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "'a' is given twice"),
        (b'{"weight_map": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"weight_map": ' + b"[" * 500 + b"]" * 500 + b"}", "beyond 100 levels"),
        (b"\xff\xfe", "not valid JSON"),
    ],
)
def test_broken_index(sharded, text, word):
    folder, _ = sharded
    (folder / INDEX).write_bytes(text)
    refused(folder, INDEX, word)


def test_an_index_that_is_no_file_is_not_waited_for(sharded):
    folder, _ = sharded
    (folder / INDEX).unlink()
    os.mkfifo(folder / INDEX)
    refused(folder, INDEX, "not a regular file")


# Symlinks


@pytest.fixture
def cached(single, tmp_path):
    """The hub cache's layout: models--x/{blobs/<hash>, snapshots/<revision>/file -> ../../blobs/<hash>}."""
    root = tmp_path / "hub" / "models--me--x"
    (root / "blobs").mkdir(parents=True)
    snapshot = root / "snapshots" / "0a1b"
    snapshot.mkdir(parents=True)
    shutil.copy(single / "model.safetensors", root / "blobs" / "9f86d0")
    (snapshot / "model.safetensors").symlink_to("../../blobs/9f86d0")
    return snapshot


def test_hub_cache(cached, tensors, tmp_path):
    assert open_folder(cached).names() == sorted(tensors)
    (tmp_path / "alias").symlink_to(cached)
    assert open_folder(tmp_path / "alias").names() == sorted(tensors)


def test_hub_cache_with_shards_in_a_subfolder(cached, sharded):
    folder, arrays = sharded
    sub = cached / "sub"
    sub.mkdir()
    for i, path in enumerate(sorted(folder.iterdir())):
        shutil.copy(path, cached.parent.parent / "blobs" / f"blob{i}")
        (sub / path.name).symlink_to(f"../../../blobs/blob{i}")
    assert open_folder(sub).names() == sorted(arrays)


def test_hub_cache_link_to_elsewhere(cached, single):
    link = cached / "model.safetensors"
    link.unlink()
    link.symlink_to(single / "model.safetensors")
    refused(cached, "model.safetensors is a symlink", "outside", "copy or hard-link")


def test_hub_cache_link_through_blobs_to_elsewhere(cached, single):
    blob = cached.parent.parent / "blobs" / "9f86d0"
    blob.unlink()
    blob.symlink_to(single / "model.safetensors")
    refused(cached, "is a symlink", "outside")


def test_only_the_hubs_own_layout_is_an_exception(cached):
    cached.parent.rename(cached.parent.with_name("revisions"))
    refused(cached.parent.with_name("revisions") / "0a1b", "is a symlink", "outside")


def test_dangling_links(cached, sharded):
    (cached.parent.parent / "blobs" / "9f86d0").unlink()
    refused(cached, "model.safetensors is a symlink to nothing", "incomplete")
    folder, _ = sharded
    (folder / SHARDS[0]).unlink()
    (folder / SHARDS[0]).symlink_to("nowhere")
    refused(folder, f"{SHARDS[0]} is a symlink to nothing")


def test_shard_or_index_that_leaves_the_folder(sharded, tmp_path):
    folder, _ = sharded
    for name in (SHARDS[0], INDEX):
        shutil.move(folder / name, tmp_path / name)
        (folder / name).symlink_to(tmp_path / name)
        refused(folder, name, "is a symlink", "outside")


def test_where_a_link_leads_is_told_in_one_line(sharded, tmp_path):
    folder, _ = sharded
    shutil.move(folder / SHARDS[0], tmp_path / "a\nb")
    (folder / SHARDS[0]).symlink_to(tmp_path / "a\nb")
    refused(folder, SHARDS[0], "a\\nb", "outside")


def test_a_link_inside_of_the_folder_is_fine(sharded):
    folder, arrays = sharded
    (folder / SHARDS[0]).rename(folder / "real")
    (folder / SHARDS[0]).symlink_to("real")
    assert open_folder(folder).names() == sorted(arrays)


# No model


def folder_of(tmp_path, *names):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(b"x")
    return folder


def test_absent_folder_and_file_for_folder(tmp_path, single):
    refused(tmp_path / "absent", "absent", "no such folder")
    refused(single / "model.safetensors", "is a file", "config.json")


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt", "model.pth", "last.ckpt"]
)
def test_pickles_are_not_read(tmp_path, name):
    folder = folder_of(tmp_path, "config.json", name)
    refused(folder, name, "pickled weights", "not read", "save it as safetensors")


def test_adapter(tmp_path):
    folder = folder_of(tmp_path, "adapter_config.json", "adapter_model.safetensors")
    refused(folder, "adapter_model.safetensors", "adapter", "base model")


def test_other_safetensors_files(tmp_path):
    folder = folder_of(tmp_path, "config.json", "consolidated.safetensors", "pytorch_model.bin")
    refused(folder, "neither model.safetensors nor model.safetensors.index.json", "consolidated.safetensors")


def test_shards_without_an_index(tmp_path):
    names = [f"model-{i:05}-of-00012.safetensors" for i in range(1, 13)]
    refused(folder_of(tmp_path, *names), names[0], "and 4 more")


def test_nothing(tmp_path):
    refused(folder_of(tmp_path), "found nothing")
