"""What a comparison with the manifest finds in a result that somebody changed, and what may change."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest

from alignez_bake.certificate import tensors as tensors_level
from alignez_bake.integrity.check import check_manifest
from alignez_bake.integrity.folder_files import files_in, may_be_added
from alignez_bake.integrity.hashing import hash_file, hash_tensor
from alignez_bake.integrity.manifest import Manifest, TensorHashes, read_manifest, write_manifest
from alignez_bake.integrity.measure import manifest_of
from alignez_bake.safetensors_io.header import read_header
from alignez_bake.safetensors_io.writer import write_tensors

ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture
def out(tmp_path):
    """A folder as a bake leaves it: two shards with one edited tensor each, small files, a record, a hidden file."""
    folder = tmp_path / "out"
    (folder / "alignez").mkdir(parents=True)
    random = np.random.default_rng(0)
    for file, names in ((ONE, "ab"), (TWO, "cd")):
        write_tensors(folder / file, {name: random.standard_normal((8, 4)).astype(np.float32) for name in names})
    for name in ("config.json", "README.md", ".gitattributes", "alignez/alignez.json"):
        (folder / name).write_text(name)
    edited = {"a": ONE, "c": TWO}
    tensors = {}
    for name, file in edited.items():
        header = read_header(folder / file)
        tensors[name] = TensorHashes(file, hash_tensor(header, header.entries[name]), None, "nearest")
    write_manifest(folder, Manifest(manifest_of(folder, None).files, tensors))
    return folder


def flip(name, place=-1):
    """One bit of one byte, from the end of the file."""

    def change(folder):
        data = bytearray((folder / name).read_bytes())
        data[place] ^= 1
        (folder / name).write_bytes(data)

    return change


def swapped(folder):
    """The data of two tensors of one file, each in the other's place."""
    header = read_header(folder / ONE)
    data = (folder / ONE).read_bytes()
    begin, middle = header.data_offset, header.data_offset + header.entries["a"].nbytes
    (folder / ONE).write_bytes(data[:begin] + data[middle:] + data[begin:middle])


def without_tensor(folder):
    header = read_header(folder / ONE)
    from alignez_bake.safetensors_io.file_access import read_tensor

    write_tensors(folder / ONE, {"b": read_tensor(header, header.entries["b"])})


def linked_elsewhere(folder):
    (folder / "config.json").rename(folder.parent / "config.json")
    (folder / "config.json").symlink_to(folder.parent / "config.json")


CHANGES = {
    "a bit of an edited tensor": (flip(ONE, -200), [f"'{ONE}' was changed: 1 edited or added tensor(s)", "'a'"]),
    "a bit of another tensor": (flip(ONE), [f"'{ONE}' was changed, and none of its edited tensors"]),
    "a bit of the header": (flip(TWO, 20), [f"'{TWO}' was changed"]),
    "two tensors swapped": (swapped, [f"'{ONE}' was changed: 1 edited or added tensor(s)", "'a'"]),
    "a tensor gone": (without_tensor, [f"'{ONE}' was changed: 1 edited", "'a', which is missing"]),
    "two files swapped": (
        lambda folder: (
            (folder / ONE).rename(folder / "x"),
            (folder / TWO).rename(folder / ONE),
            (folder / "x").rename(folder / TWO),
        ),
        [f"'{ONE}' was changed", f"'{TWO}' was changed"],
    ),
    "a truncated shard": (lambda folder: os.truncate(folder / TWO, 300), [f"'{TWO}' was changed", "is truncated"]),
    "an empty shard": (lambda folder: os.truncate(folder / TWO, 0), [f"'{TWO}' was changed", "is empty"]),
    "a shard gone": (lambda folder: (folder / TWO).unlink(), [f"'{TWO}' is missing"]),
    "a bit of a small file": (flip("config.json"), ["'config.json' was changed"]),
    "a longer file": (
        lambda folder: (folder / "config.json").write_text("config.json "),
        ["'config.json' has 12 bytes, and had 11"],
    ),
    "the card": (flip("README.md"), ["'README.md' was changed"]),
    "the record": (flip("alignez/alignez.json"), ["'alignez/alignez.json' was changed"]),
    "a folder for a file": (
        lambda folder: ((folder / "config.json").unlink(), (folder / "config.json").mkdir()),
        ["'config.json' "],
    ),
    "a link out of the folder": (linked_elsewhere, ["'config.json' was changed", "outside of the model's folder"]),
    "one more weight file": (
        lambda folder: shutil.copy(folder / ONE, folder / "adapter_model.safetensors"),
        ["'adapter_model.safetensors' was not there after the bake"],
    ),
    "code in a hidden folder": (
        lambda folder: ((folder / ".x").mkdir(), (folder / ".x" / "code.py").write_text("")),
        ["'.x/code.py' was not there"],
    ),
    "code in the record": (
        lambda folder: (folder / "alignez" / "code.py").write_text(""),
        ["'alignez/code.py' was not there"],
    ),
    "a link to a folder": (
        lambda folder: (folder / "more").symlink_to(folder.parent),
        ["'more' was not there"],
    ),
}


def test_a_folder_as_it_was_written_passes(out):
    found = check_manifest(out)
    assert (found.verdict, found.reasons, found.notes, found.not_checked) == ("passed", (), (), ())
    assert (found.files, found.tensors) == (6, 2)
    assert found.size == sum((out / name).stat().st_size for name in files_in(out))
    assert found.manifest_hash == hash_file(out / "alignez" / "manifest.json")[1]
    assert json.loads(json.dumps(found.to_json()))["verdict"] == "passed"


@pytest.mark.parametrize("case", CHANGES)
def test_what_was_changed_is_found_and_named(case, out):
    change, says = CHANGES[case]
    change(out)
    found = check_manifest(out)
    assert found.verdict == "failed"
    assert not found.notes
    assert len(found.reasons) == (2 if case == "two files swapped" else 1)
    for part in says:
        assert any(part in reason for reason in found.reasons), found.reasons


def test_a_tensor_that_the_manifest_itself_tells_otherwise_is_found(out):
    """A file's hash that was brought in line with a change does not hide it."""
    manifest = read_manifest(out)
    flip(ONE, -200)(out)
    files = {**manifest.files, ONE: manifest_of(out, None).files[ONE]}
    write_manifest(out, Manifest(files, manifest.tensors))
    assert check_manifest(out).reasons == (
        f"'{ONE}' was changed: 1 edited or added tensor(s) are not as they were written: 'a'",
    )


def test_hidden_files_and_those_of_the_record_may_come_and_hidden_ones_may_change(out):
    (out / "alignez" / "report.html").write_text("new")
    (out / ".git").mkdir()
    (out / ".git" / "HEAD").write_text("new")
    (out / ".gitattributes").write_text("anew by the hub")
    found = check_manifest(out)
    assert found.verdict == "passed"
    assert found.notes == ("'.gitattributes' has 15 bytes, and had 14",)
    (out / ".gitattributes").unlink()
    assert check_manifest(out).notes == ("'.gitattributes' is missing",)


def test_what_may_come_is_what_level_tensors_lets_pass(out):
    names = [
        "x.json",
        "sub/x.bin",
        ".x/y.json",
        ".x/y.py",
        "alignez/x",
        "alignez/x.py",
        "sub/.x",
        "x.py",
        ".y",
        "a/.x.py",
    ]
    for name in names:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("")
    matters = tensors_level._loadable_files(out)
    assert {name: not may_be_added(name) for name in names} == {name: name in matters for name in names}
