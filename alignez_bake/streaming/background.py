"""What runs behind the stream: writing, syncing, and the journal."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from collections.abc import Callable

    from alignez_bake.streaming.journal import Journal
    from alignez_bake.streaming.open_file import OpenFile

_SYNC_BYTES: Final = 64 * 1024 * 1024
_CHECKPOINT_BYTES: Final = 256 * 1024 * 1024
WRITERS: Final = 3
"""A disk takes more from several at a time than from one."""


class Background:
    """Threads that write, and one that syncs behind them, notes in the journal what is safe, and finishes files."""

    def __init__(self, journal: Journal) -> None:
        """Start nothing yet; `journal` is kept up to date."""
        self._journal = journal
        self._writers = ThreadPoolExecutor(WRITERS, thread_name_prefix="write")
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="sync")
        self._writes: deque[Future[None]] = deque()
        self._waiting: list[Future[None]] = []
        self._unsynced = self._unnoted = 0

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Wait for everything, or, after an error, for what runs; raise what went wrong behind the stream."""
        try:
            if kind is None:
                for future in (*self._writes, *self._waiting):
                    future.result()
        finally:
            # The writers first: a sync that has begun waits for them.
            self._writers.shutdown(cancel_futures=True)
            self._pool.shutdown(cancel_futures=True)

    def submit(self, write: Callable[[], None]) -> Future[None]:
        """Write something, side by side with others; may be called by any thread."""
        return self._writers.submit(write)

    def taken(self, file: OpenFile, write: Future[None] | None, size: int) -> None:
        """The next bytes of a file are on their way; for one thread at a time, as all that follows.

        Args:
            file: the file.
            write: what `submit` gave; None where nothing is written.
            size: of them.
        """
        while self._writes and self._writes[0].done():
            self._writes.popleft().result()
        self._unnoted += size
        if write is None:
            return
        self._writes.append(write)
        self._unsynced += size
        if self._unsynced >= _SYNC_BYTES and not self._busy():
            self._unsynced = 0
            self._behind_writes(file.sync)

    def safe_place(self, file: OpenFile) -> None:
        """A run that is killed later may go on from here, if there is a place to go on from."""
        if file.is_shared or self._unnoted < _CHECKPOINT_BYTES:
            return
        checkpoint = file.checkpoint()
        if checkpoint is None:
            return
        self._unnoted = self._unsynced = 0

        def note() -> None:
            file.sync()
            self._journal.reached(checkpoint)

        self._behind_writes(note)

    def finish(self, file: OpenFile) -> None:
        """All of the file was taken."""
        self._unnoted = self._unsynced = 0

        def note() -> None:
            self._journal.finished(file.finish())

        self._behind_writes(note)

    def _busy(self) -> bool:
        return any(not future.done() for future in self._waiting)

    def _behind_writes(self, job: Callable[[], None]) -> None:
        done = [future for future in self._waiting if future.done()]
        self._waiting = [future for future in self._waiting if not future.done()]
        for future in done:
            future.result()
        writes = tuple(self._writes)

        def after_writes() -> None:
            for write in writes:
                write.result()
            job()

        self._waiting.append(self._pool.submit(after_writes))
