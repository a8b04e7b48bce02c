"""Where the sums of a capture lie: in memory where they fit, else mapped from a file that has no name.

What is resident beside the model, of a bound of m bytes:

    sums                at most 3/4 m in memory; else mapped, and one stripe of one site's rows at a time, at most 1/4 m
    logits              of one batch under both personas, at most 3/4 m, before there is any sum
    rows of a batch     at most 1/4 m, what they are turned into float64 with included: batches are cut for it

A bound that does not hold one sequence's rows, or two stripes of a site, is passed by what is missing. The pages that a
stripe touched stay the system's: it writes them to the file when it likes, and they no longer count as memory of this
process once `release` was called. A file's room on the disk is taken before anything runs, since a mapped file that
finds none later ends the process.
"""

from __future__ import annotations

import mmap
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from alignez_bake.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import DTypeLike, NDArray

DEFAULT_MEMORY_BYTES: Final = 2 * 10**9
"""Of the statistics of one capture with all that is needed to make them, beside the model."""
_SMALL_SHARE: Final = 4
"""A stripe, and the rows of a batch, get 1 / this of the bound; the sums in memory get the rest of it."""
_PERSISTENT_TEMPORARY: Final = Path("/var/tmp")  # noqa: S108 - no file gets a name there
_TEMPORARY_VARIABLES: Final = ("TMPDIR", "TEMP", "TMP")


def rows_bytes(memory_bytes: int) -> int:
    """Most bytes that the rows of a batch take."""
    return memory_bytes // _SMALL_SHARE


def logits_bytes(memory_bytes: int) -> int:
    """Most bytes that the logits of a batch take, while there are no sums."""
    return memory_bytes - rows_bytes(memory_bytes)


def padded(size: int) -> int:
    """The room of an array of `size` bytes in the file: whole pages, so that arrays share none."""
    return -(-size // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY


def scratch_folder() -> Path:
    """Where temporary files go that may be large.

    The one that TMPDIR, TEMP or TMP names; else /var/tmp, which lies on a disk where /tmp is often memory.
    """
    named = any(os.environ.get(name) for name in _TEMPORARY_VARIABLES)
    if not named and os.access(_PERSISTENT_TEMPORARY, os.W_OK | os.X_OK):
        return _PERSISTENT_TEMPORARY
    return Path(tempfile.gettempdir())


class StatisticsMemory:
    """Arrays of one capture, all in memory or all mapped.

    Args:
        sizes: bytes of every array that `zeros` will be asked for.
        memory_bytes: the bound, see the module.
        folder: of the file, if there is one; None: `scratch_folder`.
    """

    def __init__(self, sizes: Sequence[int], *, memory_bytes: int, folder: Path | None = None) -> None:
        """Decide where the arrays lie, and take the room on the disk.

        Raises:
            BadInputError: the bound is below 1, or the folder has not the room or cannot be written.
        """
        if memory_bytes < 1:
            raise BadInputError(f"statistics cannot take {memory_bytes} bytes of memory: give 1 or more")
        self._window = rows_bytes(memory_bytes)
        self._mapping: mmap.mmap | None = None
        self._used = 0
        if sum(sizes) > memory_bytes - self._window:
            needed = sum(map(padded, sizes))
            self._mapping = _map_scratch_file(scratch_folder() if folder is None else folder, needed, memory_bytes)

    @property
    def mapped(self) -> bool:
        """Whether the arrays are mapped from a file."""
        return self._mapping is not None

    def zeros(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """An array of zeros, writeable, valid for as long as anybody holds it."""
        if self._mapping is None:
            return np.zeros(shape, dtype)
        array: NDArray[Any] = np.ndarray(shape, dtype, buffer=self._mapping, offset=self._used)
        self._used += padded(array.nbytes)
        return array

    def stripes(self, rows: int, row_bytes: int) -> Iterator[tuple[int, int]]:
        """First and last row, exclusive, of the parts of an array that are worked on one after the other.

        Args:
            rows: of the array.
            row_bytes: of one of them.

        Yields:
            Two halves, or as many parts as keep one within its share of the bound where the array is mapped.
        """
        count = 2 if self._mapping is None else min(rows, max(2, -(-rows * row_bytes // max(1, self._window))))
        for number in range(count):
            yield rows * number // count, rows * (number + 1) // count

    def release(self) -> None:
        """Let go of the pages that were looked at or written; the values stay, in the system's cache or on disk."""
        # Without msync: it would write every sum to the disk at every batch. Windows has no such call, and takes pages
        # out of a process by itself.
        if self._mapping is not None and hasattr(self._mapping, "madvise"):
            self._mapping.madvise(mmap.MADV_DONTNEED)


def _map_scratch_file(folder: Path, needed: int, memory_bytes: int) -> mmap.mmap:
    """A mapping of zeros whose file goes when the mapping does, however the process ends."""
    way_out = (
        f"the statistics take more than the {memory_bytes / 1e9:.3g} GB of memory that they may: set TMPDIR to a "
        "folder with that room, or edit fewer layers"
    )
    try:
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise BadInputError(
                f"no space left in {folder} for the statistics: {needed / 1e6:.1f} MB are needed, {free / 1e6:.1f} MB "
                f"are free; {way_out}"
            )
        # The file has no name, or loses it at once, so that nothing is left of an interrupted run.
        with tempfile.TemporaryFile(dir=folder) as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, needed)
            else:
                file.truncate(needed)
            return mmap.mmap(file.fileno(), needed)
    except OSError as error:
        raise BadInputError(
            f"no file of {needed / 1e6:.1f} MB can be made in {folder}: {error.strerror or error}; {way_out}"
        ) from error
