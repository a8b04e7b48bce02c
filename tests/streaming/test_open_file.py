"""One weight file while it is written: gone on with where what lies there is right, begun anew where it is not."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from alignez_bake.errors import BadInputError
from alignez_bake.integrity import leaves
from alignez_bake.integrity.hashing import hash_file, hash_tensor
from alignez_bake.safetensors_io.header import read_header
from alignez_bake.safetensors_io.writer import write_tensors
from alignez_bake.streaming import open_file as module
from alignez_bake.streaming.background import Background
from alignez_bake.streaming.buffers import ALIGNMENT
from alignez_bake.streaming.file_plan import plan_file
from alignez_bake.streaming.journal import Journal
from alignez_bake.streaming.open_file import OpenFile
from alignez_bake.streaming.resources import Resources
from alignez_bake.streaming.segments import CopiedTensor, NewTensor
from alignez_bake.streaming.written import WrittenTensor

RNG = np.random.default_rng(3)
VALUES = {name: RNG.normal(size=(40, 55)).astype(np.float32) for name in "abcd"}
ADDED = RNG.normal(size=(71, 33)).astype(np.float32)
NAME = "model.safetensors"
OTHER = WrittenTensor("a", "0" * 64, None, None)
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
def _small_leaves(monkeypatch):
    """Of one boundary each, so that tensors span several."""
    monkeypatch.setattr(leaves, "LEAF_BYTES", ALIGNMENT)
    with Background(Journal(None)) as background:
        monkeypatch.setattr(sys.modules[__name__], "SHARED", [Resources("blake3-leaves", background, 1)])
        yield


def opened(plan, out, done=None, link=False):
    return OpenFile(plan, out, SHARED[0], link=link, done=done)


def passed(file, until=None):
    """The file after its leaves up to one were made and written."""
    for number in file.leaves[:until]:
        preparations, make = file.maker.job(number)
        for prepare in preparations:
            prepare()
        taken(file, make())
    if until is None:
        for number in file.base_leaves:
            taken(file, file.maker.base_job(number)())
    return file


def taken(file, leaf):
    file.take(leaf)
    if leaf.write is not None:
        leaf.write.result()


def cut(plan, out, leaf):
    """What a kill leaves: the place after some leaves, and beyond it bytes that are not synced."""
    file = passed(opened(plan, out), leaf)
    place = file.checkpoint()
    file.first = leaf
    passed(file, 1)
    file.close()
    return place


def undisturbed(plan, tmp_path):
    (tmp_path / "whole").mkdir()
    written = passed(opened(plan, tmp_path / "whole")).finish()
    return written, (tmp_path / "whole" / NAME).read_bytes()


def test_hashes_are_those_of_the_bytes(plan, source, out, tmp_path):
    written, data = undisturbed(plan, tmp_path)
    assert (written.size, written.hash) == hash_file(tmp_path / "whole" / NAME)
    assert written.base_hash == hash_file(source.path)[1]
    assert (written.size, written.way) == (len(data), "written")
    (tensor,) = written.tensors
    assert (tensor.name, tensor.base_hash) == ("e", None)
    header = read_header(tmp_path / "whole" / NAME)
    assert tensor.hash == hash_tensor(header, header.entries["e"])
    assert data.endswith(ADDED.tobytes())
    assert read_header(tmp_path / "whole" / NAME).metadata == {"format": "pt"}


# The tensors begin in leaves 0, 2, 4, 6 and 8; the last one has a third of a leaf more than two.
PLACES = {3: (1, 2), 5: (2, 4), 6: (2, 4), 7: (3, 6), 9: (4, 8), 10: (4, 8)}


@pytest.mark.parametrize("made", PLACES)
def test_a_right_prefix_is_gone_on_from(made, plan, out, tmp_path):
    whole, data = undisturbed(plan, tmp_path)
    place = cut(plan, out, made)
    segment, first = PLACES[made]
    assert (place.segment, place.offset) == (segment, plan.offset(segment))
    file = opened(plan, out, place)
    assert file.first == first
    assert passed(file).finish() == whole
    assert (out / NAME).read_bytes() == data
    assert names(out) == [NAME]


def test_a_place_is_behind_a_whole_tensor_and_a_whole_leaf(plan, out):
    file = opened(plan, out)
    assert passed(file, 2).checkpoint() is None
    file.close()


def begins_anew(plan, out, place, tmp_path):
    whole, data = undisturbed(plan, tmp_path)
    file = opened(plan, out, place)
    assert file.first == 0
    assert not any(file.partial.read_bytes())
    assert passed(file).finish() == whole
    assert (out / NAME).read_bytes() == data


@pytest.mark.parametrize("at", [0, 20, 6 * ALIGNMENT - 1])
def test_a_damaged_prefix_is_begun_anew(at, plan, out, tmp_path):
    place = cut(plan, out, 7)
    partial = out / f"{NAME}.partial"
    data = bytearray(partial.read_bytes())
    data[at] ^= 1
    partial.write_bytes(data)
    begins_anew(plan, out, place, tmp_path)


def test_damage_behind_the_place_does_no_harm(plan, out, tmp_path):
    whole, _ = undisturbed(plan, tmp_path)
    place = cut(plan, out, 7)
    with (out / f"{NAME}.partial").open("r+b") as file:
        file.seek(6 * ALIGNMENT)  # the place is within this leaf, which is made anew
        file.write(b"rubbish")
    file = opened(plan, out, place)
    assert file.first == 6
    assert passed(file).finish() == whole


@pytest.mark.parametrize("size", [0, 100, 6 * ALIGNMENT - 1])
def test_a_shorter_file_is_begun_anew(size, plan, out, tmp_path):
    place = cut(plan, out, 7)
    os.truncate(out / f"{NAME}.partial", size)
    begins_anew(plan, out, place, tmp_path)


def test_a_file_that_is_gone_is_begun_anew(plan, out, tmp_path):
    place = cut(plan, out, 7)
    (out / f"{NAME}.partial").unlink()
    begins_anew(plan, out, place, tmp_path)


@pytest.mark.parametrize(
    "change",
    [{"segment": 2}, {"segment": -1}, {"segment": 99}, {"offset": -8}, {"offset": 10**18}, {"tensors": (OTHER,)}],
)
def test_a_place_that_the_plan_does_not_have_is_none(change, plan, out, tmp_path):
    begins_anew(plan, out, replace(cut(plan, out, 7), **change), tmp_path)


def test_a_base_that_is_another_is_begun_anew(plan, out, tmp_path):
    begins_anew(plan, out, replace(cut(plan, out, 7), base_hash="0" * 64), tmp_path)


def test_a_copy_that_is_gone_on_with_is_a_copy(same, out, tmp_path):
    """The manifest says so, and must be the same after a kill."""
    whole, data = undisturbed(same, tmp_path)
    assert whole.way == "copied"
    assert passed(opened(same, out, cut(same, out, 5))).finish() == whole
    assert (out / NAME).read_bytes() == data


def test_a_link_is_hashed_and_never_written_to(same, source, out):
    before = source.path.read_bytes()
    written = passed(opened(same, out, link=True)).finish()
    assert (out / NAME).samefile(source.path)
    assert (written.way, written.hash, written.base_hash) == ("hard-linked", *[hash_file(source.path)[1]] * 2)
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
    place = cut(same, out, 5)
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
