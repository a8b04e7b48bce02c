"""One weight file while it is written: gone on with where what lies there is right, begun anew where it is not."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3

from alignez_bake.errors import BadInputError
from alignez_bake.safetensors_io.header import read_header
from alignez_bake.safetensors_io.writer import write_tensors
from alignez_bake.streaming import open_file as module
from alignez_bake.streaming import resources as resources_module
from alignez_bake.streaming.file_plan import plan_file
from alignez_bake.streaming.open_file import OpenFile
from alignez_bake.streaming.resources import Resources
from alignez_bake.streaming.segments import CopiedTensor, NewTensor
from alignez_bake.streaming.staging import ALIGNMENT

RNG = np.random.default_rng(3)
VALUES = {name: RNG.normal(size=(40, 55)).astype(np.float32) for name in "abcd"}
ADDED = RNG.normal(size=(71, 33)).astype(np.float32)
NAME = "model.safetensors"
SHARED: list[Resources] = []


@pytest.fixture
def source(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "out").mkdir()
    write_tensors(tmp_path / "base" / NAME, VALUES, {"format": "pt"})
    return read_header(tmp_path / "base" / NAME)


@pytest.fixture
def plan(source):
    """Another tensor behind the base's."""
    return plan_file(NAME, source, [*copies(source), NewTensor("e", "F32", ADDED.shape, lambda: ADDED)])


@pytest.fixture
def same(source):
    """The base's file."""
    return plan_file(NAME, source, copies(source))


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture(autouse=True)
def _no_reflinks(monkeypatch):
    monkeypatch.setattr(module, "cloned", lambda source, target: False)


def names(folder):
    return [path.name for path in folder.iterdir()]


def copies(source):
    return [CopiedTensor(source, entry) for entry in source.entries.values()]


@pytest.fixture(autouse=True)
def resources(monkeypatch):
    """Buffers so small that most tensors take several."""
    monkeypatch.setattr(resources_module, "_BUFFER_BYTES", ALIGNMENT)
    monkeypatch.setattr(sys.modules[__name__], "SHARED", [Resources(2)])


def opened(plan, out, done=None, link=False):
    return OpenFile(plan, out, "blake3", SHARED[0], link=link, done=done)


def passed(file, until=None):
    """The file after its segments up to one passed."""
    for segment in file.plan.segments[file.first : until]:
        file.begin_segment(segment)
        for stretch in segment.stretches():
            for job in stretch.blocks:
                written(file, file.take(job()))
        file.end_segment()
    written(file, file.flush(last=until is None))
    return file


def written(file, pieces):
    for piece in pieces:
        file.write(piece)


def cut(plan, out, segment):
    """What a kill leaves: a place, and beyond it bytes that are not synced."""
    file = passed(opened(plan, out), segment)
    place = file.checkpoint(segment)
    passed(opened_again(file, segment), segment + 1)
    file.close()
    return place


def opened_again(file, segment):
    file.first = segment
    return file


def undisturbed(plan, tmp_path):
    (tmp_path / "whole").mkdir()
    written = passed(opened(plan, tmp_path / "whole")).finish()
    return written, (tmp_path / "whole" / NAME).read_bytes()


def test_hashes_are_those_of_the_bytes(plan, source, out, tmp_path):
    written, data = undisturbed(plan, tmp_path)
    assert written.hash == blake3(data).hexdigest()
    assert written.base_hash == blake3(source.path.read_bytes()).hexdigest()
    assert (written.size, written.way) == (len(data), "written")
    (tensor,) = written.tensors
    assert (tensor.name, tensor.base_hash) == ("e", None)
    assert tensor.hash == blake3(ADDED.tobytes()).hexdigest()
    assert data.endswith(ADDED.tobytes())
    assert read_header(tmp_path / "whole" / NAME).metadata == {"format": "pt"}


@pytest.mark.parametrize("segment", range(6))
def test_a_right_prefix_is_gone_on_from(segment, plan, out, tmp_path):
    whole, data = undisturbed(plan, tmp_path)
    place = cut(plan, out, segment)
    file = opened(plan, out, place)
    assert (file.first, file.offset) == (segment, plan.offset(segment))
    assert file.partial.stat().st_size == plan.offset(segment)
    assert passed(file).finish() == whole
    assert (out / NAME).read_bytes() == data
    assert names(out) == [NAME]


def begins_anew(plan, out, place, tmp_path):
    whole, data = undisturbed(plan, tmp_path)
    file = opened(plan, out, place)
    assert (file.first, file.offset) == (0, len(plan.head))
    assert passed(file).finish() == whole
    assert (out / NAME).read_bytes() == data


@pytest.mark.parametrize("at", [0, 20, -1])
def test_a_damaged_prefix_is_begun_anew(at, plan, out, tmp_path):
    place = cut(plan, out, 3)
    partial = out / f"{NAME}.partial"
    data = bytearray(partial.read_bytes())
    data[at if at >= 0 else place.offset - 1] ^= 1
    partial.write_bytes(data)
    begins_anew(plan, out, place, tmp_path)


def test_damage_behind_the_place_does_no_harm(plan, out, tmp_path):
    whole, _ = undisturbed(plan, tmp_path)
    place = cut(plan, out, 3)
    with (out / f"{NAME}.partial").open("r+b") as file:
        file.seek(place.offset)
        file.write(b"rubbish")
    file = opened(plan, out, place)
    assert file.first == 3
    assert passed(file).finish() == whole


@pytest.mark.parametrize("size", [0, 100, -1])
def test_a_shorter_file_is_begun_anew(size, plan, out, tmp_path):
    place = cut(plan, out, 3)
    os.truncate(out / f"{NAME}.partial", size if size >= 0 else place.offset - 1)
    begins_anew(plan, out, place, tmp_path)


def test_a_file_that_is_gone_is_begun_anew(plan, out, tmp_path):
    place = cut(plan, out, 3)
    (out / f"{NAME}.partial").unlink()
    begins_anew(plan, out, place, tmp_path)


@pytest.mark.parametrize(
    "change", [{"segment": 2}, {"segment": -1}, {"segment": 99}, {"offset": -8}, {"offset": 10**18}]
)
def test_a_place_that_the_plan_does_not_have_is_none(change, plan, out, tmp_path):
    begins_anew(plan, out, replace(cut(plan, out, 3), **change), tmp_path)


def test_a_base_that_is_another_is_begun_anew(plan, out, tmp_path):
    begins_anew(plan, out, replace(cut(plan, out, 3), base_hash="0" * 64), tmp_path)


def test_a_copy_that_is_gone_on_with_is_a_copy(same, out, tmp_path):
    """The manifest says so, and must be the same after a kill."""
    whole, data = undisturbed(same, tmp_path)
    assert whole.way == "copied"
    assert passed(opened(same, out, cut(same, out, 2))).finish() == whole
    assert (out / NAME).read_bytes() == data


def test_a_link_is_hashed_and_never_written_to(same, source, out):
    before = source.path.read_bytes()
    written = passed(opened(same, out, link=True)).finish()
    assert (out / NAME).samefile(source.path)
    assert (written.way, written.hash, written.base_hash) == ("hard-linked", *[blake3(before).hexdigest()] * 2)
    assert source.path.read_bytes() == before


@pytest.mark.parametrize("left", [NAME, f"{NAME}.partial"])
@pytest.mark.parametrize("link", [True, False])
def test_a_link_that_a_killed_run_left_is_taken_away(link, left, same, source, out):
    os.link(source.path, out / left)
    before = source.path.read_bytes()
    passed(opened(same, out, link=link)).finish()
    assert source.path.read_bytes() == before
    assert names(out) == [NAME]
    assert (out / NAME).samefile(source.path) == link


def test_a_place_in_a_link_does_not_lead_into_the_base(same, source, out):
    """Had one been noted: what is cut off and written anew there would be the base."""
    place = cut(same, out, 2)
    (out / f"{NAME}.partial").unlink()
    os.link(source.path, out / f"{NAME}.partial")
    before = source.path.read_bytes()
    passed(opened(same, out, place, link=True)).finish()
    assert source.path.read_bytes() == before
    assert not (out / NAME).samefile(source.path)
    assert (out / NAME).read_bytes() == before


def test_a_symbolic_link_is_not_followed(plan, source, out):
    (out / f"{NAME}.partial").symlink_to(source.path)
    before = source.path.read_bytes()
    passed(opened(plan, out)).finish()
    assert source.path.read_bytes() == before
    assert not (out / NAME).is_symlink()


def test_nothing_stays_open_where_a_file_cannot_be_begun(plan, out, monkeypatch):
    def full(descriptor, size):
        del descriptor, size
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "ftruncate", full)
    before = len(names(Path("/proc/self/fd")))
    with pytest.raises(OSError, match="No space left"):
        opened(plan, out)
    assert len(names(Path("/proc/self/fd"))) == before


def test_a_base_that_changed_is_not_linked_in_silence(same, source, out):
    os.utime(source.path, ns=(1, 1))
    with pytest.raises(BadInputError, match="changed after its header was read"):
        passed(opened(same, out, link=True))


def test_the_name_comes_last(plan, out):
    file = passed(opened(plan, out))
    assert names(out) == [f"{NAME}.partial"]
    file.finish()
    assert names(out) == [NAME]
