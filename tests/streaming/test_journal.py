"""The journal of an unfinished result: what it says comes back, a cut line does not, and nothing hostile gets by."""

from __future__ import annotations

import json

import pytest

from alignez_bake.errors import BadInputError
from alignez_bake.lowering.delivery import DeliverySums
from alignez_bake.streaming import journal as module
from alignez_bake.streaming.journal import Checkpoint, Journal, begin_journal, check_same, files_to_keep, journal_lines
from alignez_bake.streaming.written import WrittenFile, WrittenTensor

MADE = {"tool": "alignez-bake 9", "edits": "ab", "base_files": [["model.safetensors", 10, 7]]}
TENSORS = (
    WrittenTensor("a", "0" * 64, "1" * 64, DeliverySums(0.1, 1 / 3, 1e-300, 2.5, -7), "carry"),
    WrittenTensor("b", "2" * 64, None, None),
)
FILE = WrittenFile("one.safetensors", "written", 123, "3" * 64, "4" * 64, TENSORS)
PLACE = Checkpoint("two.safetensors", 3, 456, "5" * 64, None, TENSORS)


@pytest.fixture
def path(tmp_path):
    (tmp_path / ".out.partial" / "alignez").mkdir(parents=True)
    return tmp_path / ".out.partial" / "alignez" / "journal.jsonl"


@pytest.fixture
def written(path):
    """With one line of each kind."""
    begin_journal(path, MADE)
    journal = Journal(path)
    journal.reached(PLACE)
    journal.finished(FILE)
    return path


def test_what_was_noted_comes_back_digit_by_digit(written):
    again = Journal(written)
    assert again.done == {FILE.name: FILE}
    assert again.checkpoints == {PLACE.file: PLACE}


def test_the_last_place_counts(written):
    later = Checkpoint(PLACE.file, 5, 789, "6" * 64, "7" * 64, ())
    Journal(written).reached(later)
    assert Journal(written).checkpoints == {PLACE.file: later}


def test_without_a_path_nothing_is_kept():
    journal = Journal(None)
    journal.finished(FILE)
    journal.reached(PLACE)
    assert journal.done == {FILE.name: FILE}


@pytest.mark.parametrize("cut", [1, 2, 30])
def test_a_line_that_was_cut_is_as_good_as_none(cut, written):
    """And what is noted next begins a line of its own."""
    written.write_bytes(written.read_bytes()[:-cut])
    again = Journal(written)
    assert (again.done, again.checkpoints) == ({}, {PLACE.file: PLACE})
    again.finished(FILE)
    assert Journal(written).done == {FILE.name: FILE}
    assert not list(written.parent.glob("*.partial"))


def test_every_line_is_synced_before_anything_else_is_done(path, monkeypatch):
    begin_journal(path, MADE)
    journal, synced = Journal(path), []
    monkeypatch.setattr(module.os, "fsync", lambda descriptor: synced.append(path.read_bytes()))
    journal.reached(PLACE)
    assert len(synced) == 1
    assert synced[0].endswith(b"\n")
    assert json.loads(synced[0].splitlines()[-1])["segment"] == PLACE.segment


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({**MADE, "edits": "cd"}, "(other edits)"),
        ({**MADE, "edits": "cd", "tool": "alignez-bake 8"}, "(other edits, tool)"),
        ({key: MADE[key] for key in ("edits", "tool")}, "(other kind)"),
        ({**MADE, "more": 1}, "(other more)"),
        ({}, "(other kind)"),
    ],
)
def test_a_journal_of_something_else_is_refused(other, says, written):
    with pytest.raises(BadInputError) as caught:
        check_same(written, journal_lines(written)[0], other)
    assert says in str(caught.value)
    assert str(written.parents[1]) in str(caught.value)


def test_names_in_a_foreign_journal_are_not_shown(written):
    with pytest.raises(BadInputError) as caught:
        check_same(written, {**MADE, "\x1b[31m" * 1000: 1}, MADE)
    assert len(str(caught.value)) < 500
    assert "\x1b" not in str(caught.value)


def place(**changes):
    line = {"file": "x", "segment": 1, "offset": 8, "hash": "a", "base_hash": None, "tensors": []}
    return json.dumps(line | changes)


def done(**changes):
    line = {"name": "x", "way": "written", "size": 8, "hash": "a", "base_hash": "b", "tensors": []}
    return json.dumps({"done": line | changes})


def tensor(**changes):
    return [{"name": "t", "hash": "a", "base_hash": None, "sums": None, "rounding": "nearest"} | changes]


def sums(**changes):
    values = {"aligned": 0.0, "change": 1.0, "residual": 0.0, "base": 0.0, "exponent": 1}
    return tensor(sums=values | changes)


HOSTILE = [
    "", "x", "[]", "null", "1", "{", "{}", '{"done": 1}', '{"done": []}', '{"done": {}}', "[" * 100_000,
    '{"file": ' + "9" * 5000 + "}", "\x00", '{"a": "\\ud800"}',
    *(place(file=value) for value in (None, 1, [], {}, "", ".", "..", "../x", "/x", "a/b", "a\0b")),
    *(place(**{key: value}) for key in ("segment", "offset") for value in (None, "1", 1.0, True, [], {})),
    *(place(hash=value) for value in (None, 1, [])),
    *(place(base_hash=value) for value in (1, [], {})),
    *(place(tensors=value) for value in (None, 1, [1], [None], [[]], [{}], {"a": 1})),
    place(more=1),
    *(done(name=value) for value in (None, 1, [], {}, "", "..", "../x", "/x")),
    *(done(way=value) for value in (None, 1, [], "moved")),
    *(done(size=value) for value in (None, "1", 1.5, False)),
    *(done(hash=value) for value in (None, 1)),
    *(done(base_hash=value) for value in (None, 1)),
    done(more=1),
    *(done(tensors=tensor(**{key: value})) for key in ("name", "hash") for value in (None, 1, [])),
    done(tensors=tensor(rounding="up")),
    done(tensors=tensor(rounding=[])),
    done(tensors=tensor(sums=1)),
    done(tensors=tensor(sums=[])),
    *(done(tensors=sums(**{key: "1"})) for key in ("aligned", "change", "residual", "base", "exponent")),
    done(tensors=sums(exponent=1.5)),
    done(tensors=sums(more=1)),
]  # fmt: skip


@pytest.mark.parametrize("line", HOSTILE, ids=[str(number) for number in range(len(HOSTILE))])
def test_hostile_lines_are_refused_by_name(line, written):
    data = written.read_bytes() + line.encode() + b"\n"
    written.write_bytes(data)
    with pytest.raises(BadInputError, match=r"is damaged: remove .*partial, and start anew"):
        Journal(written)
    assert written.read_bytes() == data


def test_what_the_hostile_lines_are_changed_from_is_taken(written):
    """Else they would be refused for another reason."""
    lines = [place(), done(), done(tensors=tensor()), done(tensors=sums()), place(tensors=sums())]
    for line in lines:
        written.write_bytes(written.read_bytes() + line.encode() + b"\n")
    assert "x" in Journal(written).done


def test_bytes_that_are_no_text_are_refused(written):
    written.write_bytes(b"\xff\xfe\n" + written.read_bytes())
    with pytest.raises(BadInputError, match="is damaged"):
        journal_lines(written)


def test_a_file_that_is_too_large_is_not_read(written, monkeypatch):
    monkeypatch.setattr(module, "_MAX_BYTES", 100)
    with pytest.raises(BadInputError, match="too many for a journal"):
        journal_lines(written)


def test_a_link_is_no_journal(written, path):
    other = path.with_name("other")
    path.rename(other)
    path.symlink_to(other)
    assert journal_lines(path) == []


def test_only_what_is_noted_is_kept(written):
    assert files_to_keep(written, journal_lines(written)) == {"one.safetensors", "two.safetensors.partial"}
