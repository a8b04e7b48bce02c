import fcntl
import os

import pytest

from alignez_bake.errors import BadInputError
from alignez_bake.tuning.state import tuning_state

SEARCH = {"seed": 0, "candidates": [{"name": "naïve", "strength": 0.1}]}
KEYS = [
    {"kind": "kl", "candidate": "naïve"},
    {"kind": "answers", "first": 0, "last": 3},
    {"kind": "kl", "candidate": "b"},
]
VALUES = [0.1 + 0.2, [1.0, 1 / 3, 0.0], float("inf")]


def run(path, search=SEARCH, keys=KEYS, values=VALUES):
    """Ask for all figures; return them, and how many were measured."""
    measured = []

    def measure(value):
        measured.append(value)
        return value

    with tuning_state(path, search) as state:
        found = [
            state.numbers(key, 3, lambda value=value: measure(value))
            if isinstance(value, list)
            else state.number(key, lambda value=value: measure(value))
            for key, value in zip(keys, values, strict=True)
        ]
    return found, len(measured)


def test_wherever_the_file_was_cut_the_same_bytes_come_out(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)  # hundreds of files
    expected = [0.1 + 0.2, [1.0, 1 / 3, 0.0], None]
    assert run(tmp_path / "whole") == (expected, 3)
    data = (tmp_path / "whole").read_bytes()
    path = tmp_path / "cut"
    for length in range(len(data) + 1):
        path.write_bytes(data[:length])
        assert run(path) == (expected, 3 - max(0, data[:length].count(b"\n") - 1))
        assert path.read_bytes() == data


def test_nothing_on_disk():
    assert run(None) == run(None)
    assert run(None)[1] == 3


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({**SEARCH, "seed": 1}, "of another search .seed was 0, now 1."),
        ({**SEARCH, "rounds": [3]}, "rounds was None, now .3."),
        ({"seed": 0, "candidates": []}, "candidates was .*, now .."),
    ],
)
def test_another_search_does_not_take_the_file_up(tmp_path, search, message):
    path = tmp_path / "state"
    run(path)
    before = path.read_bytes()
    with pytest.raises(BadInputError, match=message):
        run(path, search)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("my notes\n", "cannot be continued"),
        ('{"query": "a"}\n', "no file of a search that this tool began"),
        ('{"alignez_tuning": 2, "search": {}}\n', "of format 2: this version goes on with 1"),
        ('{"alignez_tuning": 1, "search": 3}\n', "no file of a search"),
    ],
)
def test_a_file_of_something_else_is_left_alone(tmp_path, content, message):
    path = tmp_path / "state"
    path.write_text(content)
    with pytest.raises(BadInputError, match=message):
        run(path)
    assert path.read_text() == content


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ('"candidate": "b"', '"candidate": "c"', 4),
        ("[1.0, 0.3333333333333333, 0.0]", "[1.0, 0.0]", 3),
        ("[1.0, 0.3333333333333333, 0.0]", '[1.0, true, "0"]', 3),
        ("0.30000000000000004", '"0.3"', 2),
        ('"value": null', '"values": null', 4),
    ],
)
def test_a_file_that_was_changed_is_refused(tmp_path, old, new, line):
    path = tmp_path / "state"
    run(path)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(BadInputError, match=f"line {line} is not the figure that belongs there"):
        run(path)


def test_a_file_that_holds_more_is_refused(tmp_path):
    path = tmp_path / "state"
    run(path)
    with pytest.raises(BadInputError, match="holds more figures than this search asks for"):
        run(path, keys=KEYS[:2], values=VALUES[:2])


def test_two_runs_do_not_write_at_once(tmp_path):
    path = tmp_path / "state"
    run(path)
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(BadInputError, match="another run is writing"):
            run(path)


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInputError, match="cannot be written"):
        run(tmp_path / "file" / "state")
    with pytest.raises(BadInputError, match="cannot be written"):
        run(tmp_path)
