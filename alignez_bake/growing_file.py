"""Files of lines that grow with a run, so that an interrupted one goes on where it was.

The first line, the header, says which run it is of. What follows is written piece by piece, each by one call and then
synced; half a line, which a crash left, does not count. What the lines mean is the business of each kind of file.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from alignez_bake.errors import BadInputError
from alignez_bake.safetensors_io.strict_json import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from io import BufferedRandom
    from pathlib import Path


@contextmanager
def locked_file(
    path: Path, *, way_out: str = "choose another file", follow_links: bool = True
) -> Iterator[BufferedRandom]:
    """A file to read and to append to, new or not, that no other run writes to meanwhile.

    Args:
        path: the file; its folder is made.
        way_out: what a user can do where another run writes to it.
        follow_links: whether it may be a symbolic link.

    Raises:
        BadInputError: it cannot be written, or another run is writing to it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | (0 if follow_links else os.O_NOFOLLOW), 0o666)
    except OSError as error:
        raise BadInputError(f"{path} cannot be written: {error.strerror or error}") from error
    with os.fdopen(descriptor, "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadInputError(f"another run is writing to {path}: wait for it, or {way_out}") from None
        yield file


def whole_lines(file: BufferedRandom, header: bytes, refused: Callable[[bytes], BadInputError]) -> list[bytes]:
    """The lines behind the header, without their ends; a file that is new gets its header.

    Args:
        file: as `locked_file` gave it.
        header: the first line of this run, with its end.
        refused: the error of a file whose first line is another, which it is given.

    Raises:
        BadInputError: what `refused` made.
    """
    data = file.read()
    if header.startswith(data):  # new, or interrupted within the header
        file.seek(0)
        file.truncate()
        write_synced(file, header)
        return []
    if not data.startswith(header):
        raise refused(data.split(b"\n", 1)[0])
    *whole, _half = data[len(header) :].split(b"\n")
    return whole


def cut_behind(file: BufferedRandom, header: bytes, lines: Sequence[bytes]) -> None:
    """Let a file end with these lines, which it begins with."""
    file.seek(len(header) + sum(len(line) + 1 for line in lines))
    file.truncate()


def append(file: BufferedRandom, path: Path | None, data: bytes) -> None:
    """Write the next piece.

    Raises:
        BadInputError: the disk is full, or the file cannot be written any more.
    """
    try:
        write_synced(file, data)
    except OSError as error:
        raise BadInputError(
            f"{path} cannot be written: {error.strerror or error}; the same command goes on from there"
        ) from error


def write_synced(file: BufferedRandom, data: bytes) -> None:
    """Write by one call, to the disk."""
    file.write(data)
    file.flush()
    os.fsync(file.fileno())


def what_changed(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """How the settings in a header differ from this run's."""
    changed = [
        f"{key} was {shown(theirs.get(key))}, now {shown(ours.get(key))}"
        for key in sorted({*ours, *theirs})
        if ours.get(key) != theirs.get(key)
    ]
    return "; ".join(changed) or "written otherwise"
