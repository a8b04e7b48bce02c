import fcntl
import os
from dataclasses import replace

import pytest

from alignez_bake.edit_plan import BaseFingerprint
from alignez_bake.errors import BadInputError
from alignez_bake.preference_pairs.records import PairHeader, PairOrigin, PairRecord
from alignez_bake.preference_pairs.resume import growing_pair_file

HEADER = PairHeader(PairOrigin(BaseFingerprint("llama", "c", "t"), "k"), {"seed": 0, "batch_size": 2})
BATCHES = [
    [PairRecord({"query": f"naïve {n}?"}, "helpful", side, f" answer {side}", seed=n) for side in ("good", "bad")]
    for n in range(3)
]
KEYS = [[(record.query["query"], record.objective, record.side) for record in batch] for batch in BATCHES]


def run(path, header=HEADER, keys=KEYS):
    """Append what is missing; return how many batches were there already."""
    with growing_pair_file(path, header, keys) as file:
        for batch in BATCHES[len(file.finished) :]:
            file.append(batch)
        assert [list(batch) for batch in file.finished] == BATCHES[: len(file.finished)]
        return len(file.finished)


def test_wherever_the_file_was_cut_the_same_bytes_come_out(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)  # a hundred files
    run(tmp_path / "whole")
    expected = (tmp_path / "whole").read_bytes()
    ends = [expected.index(b"\n") + 1]
    lines = expected[ends[0] :].split(b"\n")
    ends += [ends[0] + sum(len(line) + 1 for line in lines[:count]) for count in (2, 4, 6)]
    path = tmp_path / "cut"
    line_ends = [place + 1 for place, byte in enumerate(expected) if byte == ord("\n")]
    lengths = {*range(0, len(expected), 7), *(end + near for end in line_ends for near in (-2, -1, 0, 1))}
    for length in sorted(lengths):
        path.write_bytes(expected[:length])
        assert run(path) == max(0, sum(end <= length for end in ends) - 1)
        assert path.read_bytes() == expected


def test_what_is_finished_is_not_touched(tmp_path):
    run(tmp_path / "whole")
    before = (tmp_path / "whole").stat()
    assert run(tmp_path / "whole") == 3
    assert (tmp_path / "whole").stat().st_mtime_ns >= before.st_mtime_ns
    assert (tmp_path / "whole").stat().st_ino == before.st_ino


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (replace(HEADER, settings={"seed": 1, "batch_size": 2}), "other settings .seed was 0, now 1.:"),
        (replace(HEADER, settings={"batch_size": 2, "x": "y"}), "seed was 0, now None; x was None, now 'y'"),
        (PairHeader(replace(HEADER.origin, tokenizer_sha256="other"), HEADER.settings), "another model's tokens"),
        (
            PairHeader(replace(HEADER.origin, model=BaseFingerprint("gpt2", "c", "t")), HEADER.settings),
            "another model .llama.*gpt2",
        ),
    ],
)
def test_another_run_does_not_take_the_file_up(tmp_path, header, message):
    path = tmp_path / "pairs"
    run(path)
    before = path.read_bytes()
    with pytest.raises(BadInputError, match=message):
        run(path, header)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"query": "a", "side": "good", "answer": "b"}\n', "no file of pairs that this tool began"),
        ("my notes\n", "cannot be continued"),
        ('{"alignez_pairs": 2}\n', "format 2"),
    ],
)
def test_a_file_of_something_else_is_left_alone(tmp_path, content, message):
    path = tmp_path / "pairs"
    path.write_text(content)
    with pytest.raises(BadInputError, match=message):
        run(path)
    assert path.read_text() == content


def test_a_file_that_was_changed_is_refused(tmp_path):
    path = tmp_path / "pairs"
    run(path)
    whole = path.read_text()
    path.write_text(whole.replace("naïve 1?", "other?"))
    with pytest.raises(BadInputError, match="line 4 is not the answer that belongs there"):
        run(path)
    path.write_text(whole + BATCHES[0][0].line() + "\n")
    with pytest.raises(BadInputError, match="more pairs than this command makes"):
        run(path)


def test_two_runs_do_not_write_at_once(tmp_path):
    path = tmp_path / "pairs"
    run(path)
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(BadInputError, match="another run is writing"):
            run(path)
    assert run(path) == 3


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInputError, match="cannot be written"):
        run(tmp_path / "file" / "pairs")
    with pytest.raises(BadInputError, match="cannot be written"):
        run(tmp_path)


def test_nothing_on_disk():
    assert run(None) == 0
