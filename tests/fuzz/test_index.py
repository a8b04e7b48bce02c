"""The index reader takes any index, names and links: no byte outside of the folder is read."""

from __future__ import annotations

import json
import os

import pytest

from alignez_bake.safetensors_io import open_folder
from alignez_bake.safetensors_io.folder_layout import INDEX_FILE
from tests.fuzz.agreement import library_tensors
from tests.fuzz.running import SHORT_AND_LONG, hold_for_each, read_or_refused
from tests.fuzz.strategies import OUTSIDE, SHARDS, index_folders

# What a link may be without being refused; the last one in the hub's cache alone.
ALLOWED_LINKS = ("inside", "blobs")


def build(root, made):
    """Lay out a folder; returns it and the place of the hub's blobs."""
    folder = root / "models--me--x" / "snapshots" / "0a1b" if made.in_cache else root / "folder"
    folder.mkdir(parents=True)
    blobs = root / "models--me--x" / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    for name, data in {**made.shards, INDEX_FILE: made.index}.items():
        kind = made.links.get("index" if name == INDEX_FILE else name)
        path = folder / name
        if kind is None:
            path.write_bytes(data)
        else:
            put(kind, path, data, folder, blobs)
    (folder.parent / OUTSIDE).write_bytes(made.shards[SHARDS[0]])
    return folder, blobs


def put(kind, path, data, folder, blobs):
    """Put one of `LINKS` at a path."""
    targets = {
        "inside": folder / f"real-{path.name}",
        "outside": folder.parent / f"real-{path.name}",
        "outside through the folder": folder.parent / f"real-{path.name}",
        "blobs": blobs / f"real-{path.name}",
        "nothing": folder / "nowhere",
        "itself": path,
    }
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind != "absent":
        target = targets[kind]
        if kind not in {"nothing", "itself"}:
            target.write_bytes(data)
        if kind == "outside through the folder":
            (folder / "step").symlink_to(target) if not (folder / "step").is_symlink() else None
            target = folder / "step"
        path.symlink_to(target)


@pytest.fixture
def check(tmp_path, hooks):
    """`check(made)`: whether a folder is accepted; then it is held against the library's reading of its shards."""
    count = iter(range(10**9))

    def check(made):
        folder, blobs = build(tmp_path / str(next(count)), made)
        size = sum(map(len, made.shards.values())) + len(made.index)
        allowed = (folder, blobs) if made.in_cache else (folder,)

        def read():
            model = open_folder(folder)
            return model, {name: (model.file_of(name), model.read(name)) for name in model.names()}

        found = read_or_refused(read, hooks, folder, size=size, allowed=allowed)
        if found is None:
            return False
        model, tensors = found
        expected = {
            name: (file, *tensor) for file in model.files for name, tensor in library_tensors(folder / file)[0].items()
        }
        assert expected == {
            name: (file, model.entry(name).dtype, array.shape, array.tobytes())
            for name, (file, array) in tensors.items()
        }
        assert json.loads(made.index)["weight_map"] == {name: file for name, (file, _) in tensors.items()}
        return True

    return check


@SHORT_AND_LONG
def test_sound_folders_and_damaged_ones(check, examples):
    def judge(made):
        accepted = check(made)
        assert accepted or not made.sound
        refused = [kind for kind in made.links.values() if kind not in ALLOWED_LINKS[: 1 + made.in_cache]]
        assert not (accepted and refused)

    hold_for_each(index_folders(), judge, examples)
