"""The index of shards: names that are no paths, and what index and files say of each other."""

import os

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.safetensors_io.folders import INDEX, SHARDS, change_index, refused


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
