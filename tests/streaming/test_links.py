"""`--link`: files without an edit are the base's own, the manifest says so, and the base stays as it was."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest

from alignez_bake import file_sharing
from alignez_bake.commands.bake import bake
from alignez_bake.model_folder import open_model_folder
from alignez_bake.streaming import open_file
from tests.baking import command, contents
from tests.streaming.streamed_bakes import edits_of_first_layer, sharded_base


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return sharded_base(tmp_path_factory.mktemp("links") / "base")


@pytest.fixture(scope="module")
def edits(base):
    return edits_of_first_layer(base, base.parent / "edits.safetensors")


@pytest.fixture
def no_reflinks(monkeypatch):
    """A file system that has none, as most."""
    monkeypatch.setattr(open_file, "cloned", lambda source, target: False)


def ways(out):
    files = json.loads((out / "alignez" / "manifest.json").read_text())["files"]
    return {name: entry["way"] for name, entry in files.items() if name.endswith(".safetensors") and "/" not in name}


def edited_files(base):
    tensors = open_model_folder(base).tensors
    return {file for file in tensors.files if any("layers.0.mlp.down_proj" in n for n in tensors.header(file).entries)}


@pytest.mark.usefixtures("no_reflinks")
def test_only_files_without_an_edit_are_links(base, edits, tmp_path):
    out, before = tmp_path / "out", contents(base)
    result = bake(base, edits, out, link=True)
    tensors = open_model_folder(base).tensors
    # The edits' biases and weights may lie in more than one file.
    linked = {file for file in tensors.files if (base / file).samefile(out / file)}
    assert linked
    assert not linked & edited_files(base)
    assert ways(out) == {file: "hard-linked" if file in linked else "written" for file in tensors.files}
    assert result.notes == tuple(f"{file}: hard-linked" for file in tensors.files if file in linked)
    assert command("verify", out, "--model", base, "--level", "tensors") == 0
    plain = bake(base, edits, tmp_path / "plain")
    assert {file: (out / file).read_bytes() for file in tensors.files} == {
        file: (plain.path / file).read_bytes() for file in tensors.files
    }
    assert command("restore", out, "--base", base) == 0
    assert contents(base) == before
    assert {file: (out / file).read_bytes() for file in tensors.files} == {file: before[file] for file in tensors.files}


def test_a_reflink_comes_before_a_link(base, edits, tmp_path, monkeypatch):
    """The ioctl is stood in for: it shares blocks that are a file of their own."""

    def cloned(source, target):
        target.write_bytes(source.read_bytes())
        return True

    monkeypatch.setattr(open_file, "cloned", cloned)
    result = bake(base, edits, tmp_path / "out", link=True)
    files = open_model_folder(base).tensors.files
    assert "reflinked" in ways(result.path).values()
    assert not any((base / file).samefile(result.path / file) for file in files)


@pytest.mark.usefixtures("no_reflinks")
def test_another_file_system_gets_a_copy_and_says_so(base, edits):
    shared = Path("/dev/shm")
    if not shared.is_dir() or shared.stat().st_dev == base.stat().st_dev:
        pytest.skip("there is no second file system")
    with tempfile.TemporaryDirectory(dir=shared) as folder:
        result = bake(base, edits, Path(folder) / "out", link=True)
        check_copied(result, base)


@pytest.mark.usefixtures("no_reflinks")
def test_links_that_may_not_be_made_are_copies(base, edits, tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(file_sharing.os, "link", refused)
    check_copied(bake(base, edits, tmp_path / "out", link=True), base)


def check_copied(result, base):
    copied = [file for file, way in ways(result.path).items() if way == "copied"]
    assert copied
    assert len(result.notes) == len(copied)
    for note, file in zip(result.notes, copied, strict=True):
        assert note.startswith(f"{file}: copied, since --link cannot")
        assert (result.path / file).read_bytes() == (base / file).read_bytes()
        assert (result.path / file).stat().st_nlink == 1


def test_nothing_is_said_of_links_that_nobody_asked_for(base, edits, tmp_path, monkeypatch):
    monkeypatch.setattr(open_file, "cloned", lambda source, target: False)
    assert bake(base, edits, tmp_path / "out").notes == ()
