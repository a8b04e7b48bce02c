"""The manifest of a folder: what is known is taken, the rest is read."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from alignez_bake.integrity.hashing import hash_file
from alignez_bake.integrity.manifest import FileHashes, Manifest, TensorHashes
from alignez_bake.integrity.measure import manifest_of, manifest_of_weights
from alignez_bake.streaming.written import WrittenFile, WrittenTensor

A, B, C, D = (letter * 64 for letter in "abcd")


@pytest.fixture
def folders(tmp_path):
    """A base and a result."""
    base, out = tmp_path / "base", tmp_path / "out"
    for folder in (base, out):
        (folder / "alignez").mkdir(parents=True)
        (folder / "sub").mkdir()
        (folder / "config.json").write_text(f"of {folder.name}")
        (folder / "sub" / "same.txt").write_text("same")
        (folder / "alignez" / "alignez.json").write_text("same")
    os.link(base / "sub" / "same.txt", out / "linked.txt")
    (base / "linked.txt").hardlink_to(out / "linked.txt")
    (out / ".hidden").write_text("")
    return base, out


def test_every_file_is_there_with_the_hash_of_the_bases(folders):
    base, out = folders
    files = manifest_of(out, base).files
    assert set(files) == {"config.json", "sub/same.txt", "linked.txt", ".hidden", "alignez/alignez.json"}
    for name, entry in files.items():
        assert (entry.size, entry.hash) == hash_file(out / name)
    assert files["config.json"].base_hash == hash_file(base / "config.json")[1] != files["config.json"].hash
    assert files["sub/same.txt"].base_hash == files["sub/same.txt"].hash
    assert files[".hidden"].base_hash is None
    # The base's own `alignez/` is the record of another bake.
    assert files["alignez/alignez.json"].base_hash is None
    assert {name: entry.way for name, entry in files.items()} == {
        "config.json": "written",
        "sub/same.txt": "copied",
        "linked.txt": "copied",
        ".hidden": "written",
        "alignez/alignez.json": "written",
    }


def test_neither_the_manifest_nor_the_journal_is_listed(folders):
    base, out = folders
    (out / "alignez" / "manifest.json").write_text("{}")
    (out / "alignez" / "journal.jsonl").write_text("{}")
    assert "alignez/alignez.json" in manifest_of(out, base).files
    assert not {"alignez/manifest.json", "alignez/journal.jsonl"} & set(manifest_of(out, base).files)


def test_what_is_known_is_taken_and_the_way_that_is_told(folders):
    base, out = folders
    size = (out / "config.json").stat().st_size
    known = Manifest(
        {"config.json": FileHashes(size, A, B, "reflinked")}, {"w": TensorHashes("config.json", A, B, "carry")}
    )
    found = manifest_of(out, base, known=known, ways={"linked.txt": "hard-linked"})
    assert found.files["config.json"] == known.files["config.json"]
    assert found.tensors == known.tensors
    assert found.files["linked.txt"].way == "hard-linked"


def test_what_is_known_must_fit(folders):
    base, out = folders
    entry = FileHashes((out / "config.json").stat().st_size, A, B, "written")
    with pytest.raises(ValueError, match="is not as its entry says"):
        manifest_of(out, base, known=Manifest({"config.json": replace(entry, size=entry.size + 1)}))
    with pytest.raises(ValueError, match="is not as its entry says"):
        manifest_of(out, base, known=Manifest({"absent": entry}))
    with pytest.raises(ValueError, match="known hashes are blake3"):
        manifest_of(out, base, known=Manifest({"config.json": entry}), algorithm="sha256")


def test_without_a_base(folders):
    assert {entry.base_hash for entry in manifest_of(folders[1], None, algorithm="sha256").files.values()} == {None}


def test_what_a_stream_saw():
    written = [
        WrittenFile(
            "m-1", "written", 7, A, B, (WrittenTensor("w", C, D, None, "carry"), WrittenTensor("new", D, None, None))
        ),
        WrittenFile("m-2", "hard-linked", 5, B, B),
    ]
    found = manifest_of_weights(written, algorithm="sha256")
    assert found.algorithm == "sha256"
    assert found.files == {"m-1": FileHashes(7, A, B, "written"), "m-2": FileHashes(5, B, B, "hard-linked")}
    assert found.tensors == {"w": TensorHashes("m-1", C, D, "carry"), "new": TensorHashes("m-1", D, None, "nearest")}
