"""Links: those of the hub's cache and inside of a folder are followed, others refused."""

import shutil

import pytest

from alignez_bake.safetensors_io import open_folder
from tests.safetensors_io.folders import INDEX, SHARDS, refused


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
