"""Files by which an interrupted command goes on: they go when it has its outcome."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from alignez_bake.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def search_file(out: Path) -> Path:
    """The hidden file beside a result or a file of edits in which a search for them grows."""
    return out.with_name(f".{out.name}.tuning.jsonl")


@contextmanager
def removed_with_the_outcome(searching: Path, *others: Path) -> Iterator[None]:
    """Remove the file of a search, and others of the same run, once there is nothing to go on with.

    That is so when the context ends: with a result, or with the verdict that nothing helps. It is so as well where the
    input is refused, as it would be again; but a search that was there before may be another run's, which is refused
    for that: then all files stay. An interruption, or a fault of ours, leaves all of them too.

    Args:
        searching: file of the search; it need not exist.
        others: that go with it.
    """
    theirs = searching.exists()
    try:
        yield
    except BadInputError:
        if not theirs:
            _remove(searching, *others)
        raise
    _remove(searching, *others)


def _remove(*files: Path) -> None:
    for file in files:
        file.unlink(missing_ok=True)
