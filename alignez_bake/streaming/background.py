"""What runs behind the stream: writing, syncing, and the journal."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from alignez_bake.streaming.journal import Journal
    from alignez_bake.streaming.open_file import OpenFile
    from alignez_bake.streaming.segments import Block
    from alignez_bake.streaming.staging import Piece

_SYNC_BYTES: Final = 64 * 1024 * 1024
_CHECKPOINT_BYTES: Final = 256 * 1024 * 1024
_MOST_UNWRITTEN: Final = 16


class Background:
    """A thread that writes, and one that syncs behind it, notes in the journal what is safe, and finishes files."""

    def __init__(self, journal: Journal) -> None:
        """Start nothing yet; `journal` is kept up to date."""
        self._journal = journal
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="sync")
        self._writes: deque[Future[None]] = deque()
        self._waiting: list[Future[None]] = []
        self._failed: BaseException | None = None
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
            # The writer first: a sync that has begun waits for it.
            self._writer.shutdown(cancel_futures=True)
            self._pool.shutdown(cancel_futures=True)

    def write(self, file: OpenFile, block: Block) -> None:
        """Write a block behind those before it; waits only while all buffers are on their way."""
        self._write(file, file.take(block))
        self._unnoted += len(block.written)
        if self._unsynced >= _SYNC_BYTES and not self._busy():
            self._unsynced = 0
            self._submit(file.sync)

    def _write(self, file: OpenFile, pieces: Iterator[Piece]) -> None:
        for piece in pieces:
            while len(self._writes) >= _MOST_UNWRITTEN or (self._writes and self._writes[0].done()):
                self._writes.popleft().result()
            self._writes.append(self._writer.submit(self._put, file, piece))
            self._unsynced += piece.size

    def _put(self, file: OpenFile, piece: Piece) -> None:
        try:
            file.write(piece)
        except BaseException as error:
            self._failed = self._failed or error
            raise
        if self._failed is not None:
            raise self._failed  # so that the last write stands for all before it

    def safe_place(self, file: OpenFile, segment: int) -> None:
        """A segment begins here: a run that is killed later may go on from it."""
        if file.is_shared or self._unnoted < _CHECKPOINT_BYTES:
            return
        self._write(file, file.flush())
        self._unnoted = self._unsynced = 0
        checkpoint = file.checkpoint(segment)

        def note() -> None:
            file.sync()
            self._journal.reached(checkpoint)

        self._submit(note)

    def finish(self, file: OpenFile) -> None:
        """All of the file was taken."""
        self._write(file, file.flush(last=True))
        self._unnoted = self._unsynced = 0

        def note() -> None:
            self._journal.finished(file.finish())

        self._submit(note)

    def _busy(self) -> bool:
        return any(not future.done() for future in self._waiting)

    def _submit(self, job: Callable[[], None]) -> None:
        done = [future for future in self._waiting if future.done()]
        self._waiting = [future for future in self._waiting if not future.done()]
        for future in done:
            future.result()
        last = self._writes[-1] if self._writes else None

        def after_writes() -> None:
            if last is not None:
                last.result()
            job()

        self._waiting.append(self._pool.submit(after_writes))
