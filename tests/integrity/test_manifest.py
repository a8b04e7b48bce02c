"""`alignez/manifest.json`: written and read again, and what is refused of one that anybody may have written."""

from __future__ import annotations

import json

import pytest

from alignez_bake.errors import BadInputError
from alignez_bake.integrity.folder_files import MANIFEST_FILE
from alignez_bake.integrity.manifest import (
    FileHashes,
    Manifest,
    TensorHashes,
    has_manifest,
    read_manifest,
    write_manifest,
)

A, B = "a" * 64, "b" * 64
MANIFEST = Manifest(
    {
        "model.safetensors": FileHashes(10, A, B, "written"),
        "config.json": FileHashes(2, B, B, "copied"),
        "sub/ümläut.txt": FileHashes(0, A, None, "hard-linked"),
    },
    {
        "w": TensorHashes("model.safetensors", A, B, "carry"),
        "new": TensorHashes("model.safetensors", A, None, "nearest"),
    },
    "sha256",
)


@pytest.fixture
def folder(tmp_path):
    """A result folder with a manifest."""
    (tmp_path / "alignez").mkdir()
    write_manifest(tmp_path, MANIFEST)
    return tmp_path


def test_it_is_read_as_it_was_written(folder):
    assert has_manifest(folder)
    assert read_manifest(folder) == MANIFEST


def test_the_same_manifest_gives_the_same_bytes(folder):
    before = (folder / MANIFEST_FILE).read_bytes()
    turned = Manifest(dict(reversed(MANIFEST.files.items())), dict(reversed(MANIFEST.tensors.items())), "sha256")
    write_manifest(folder, turned)
    assert (folder / MANIFEST_FILE).read_bytes() == before
    assert list(json.loads(before)["files"]) == sorted(MANIFEST.files)


def test_a_folder_without_one(tmp_path):
    assert not has_manifest(tmp_path)
    with pytest.raises(BadInputError, match=r"manifest\.json: cannot be read"):
        read_manifest(tmp_path)


def test_a_name_that_is_no_text_is_refused(folder):
    with pytest.raises(BadInputError, match="not UTF-8"):
        write_manifest(folder, Manifest({"\udcff": FileHashes(0, A, None, "written")}))


def in_file(**changes):
    return lambda value: value["files"]["config.json"].update(changes)


def in_tensor(**changes):
    return lambda value: value["tensors"]["w"].update(changes)


def named(name):
    return lambda value: value["files"].update({name: value["files"]["config.json"]})


SPOILT = {
    "another format": (lambda value: value.update(format=2), "has format 2: this version reads 1"),
    "true for a format": (lambda value: value.update(format=True), "has format True"),
    "no format": (lambda value: value.pop("format"), "has format None"),
    "another algorithm": (lambda value: value.update(algorithm="md5"), "has algorithm 'md5'"),
    "a list for an algorithm": (lambda value: value.update(algorithm=["blake3"]), "has algorithm"),
    "an unknown key": (lambda value: value.update(more=1), "and nothing else"),
    "no tensors": (lambda value: value.pop("tensors"), "and nothing else"),
    "files as a list": (lambda value: value.update(files=[]), "files is []: it must be an object"),
    "a file as text": (lambda value: value["files"].update({"config.json": "x"}), "and nothing else"),
    "a file with more keys": (in_file(mode=7), "and nothing else"),
    "a negative size": (in_file(size=-1), "has size -1"),
    "true for a size": (in_file(size=True), "has size True"),
    "a fraction of a byte": (in_file(size=1.0), "has size 1.0"),
    "a short hash": (in_file(hash="a" * 63), "64 lower-case hexadecimal digits"),
    "upper case": (in_file(hash="A" * 64), "64 lower-case hexadecimal digits"),
    "a number for a hash": (in_file(base_hash=7), "has base_hash 7"),
    "no hash": (in_file(hash=None), "has hash None"),
    "an unknown way": (in_file(way="moved"), "has way 'moved'"),
    "a way out of the folder": (named("../x"), "inside of the folder"),
    "a way out in the middle": (named("a/../../x"), "inside of the folder"),
    "an absolute name": (named("/etc/passwd"), "inside of the folder"),
    "an empty name": (named(""), "inside of the folder"),
    "a name of the folder": (named("."), "inside of the folder"),
    "a zero byte": (named("a\0b"), "inside of the folder"),
    "the manifest itself": (named("alignez/manifest.json"), "other than the manifest"),
    "a tensor of no file": (in_tensor(file="other"), "has file 'other'"),
    "a tensor of a list": (in_tensor(file=[]), "has file []"),
    "an unknown rounding": (in_tensor(rounding="down"), "has rounding 'down'"),
    "a tensor with a bad hash": (in_tensor(hash="g" * 64), "64 lower-case hexadecimal digits"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_what_is_refused(case, folder):
    spoil, says = SPOILT[case]
    value = json.loads((folder / MANIFEST_FILE).read_text())
    spoil(value)
    (folder / MANIFEST_FILE).write_text(json.dumps(value))
    with pytest.raises(BadInputError) as caught:
        read_manifest(folder)
    assert says in str(caught.value)


def test_no_json_and_a_file_that_is_too_large_are_refused(folder):
    (folder / MANIFEST_FILE).write_text('{"format": 1, "format": 1}')
    with pytest.raises(BadInputError, match="given twice"):
        read_manifest(folder)
    with (folder / MANIFEST_FILE).open("wb") as file:
        file.truncate(257 * 1024 * 1024)
    with pytest.raises(BadInputError, match="at most"):
        read_manifest(folder)
