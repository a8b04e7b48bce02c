"""The weight files of a result: written as a stream, from blocks that are read and computed side by side.

Memory does not grow with the model: what is held are a few blocks a thread, and (B, A) of two or three matrices.

Threads: workers read and compute, the caller's thread hashes and writes in order, and one more syncs, so that the disk
is busy from early on.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Self

import numpy as np

from alignez_bake.integrity.hashing import hash_file
from alignez_bake.streaming.open_file import OpenFile
from alignez_bake.streaming.ordered import in_order
from alignez_bake.thread_limits import one_blas_thread, worker_count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from alignez_bake.integrity.hashing import Algorithm
    from alignez_bake.progress import Progress
    from alignez_bake.streaming.file_plan import FilePlan
    from alignez_bake.streaming.journal import Journal
    from alignez_bake.streaming.segments import Block, Stretch
    from alignez_bake.streaming.written import WrittenFile

_SYNC_BYTES: Final = 32 * 1024 * 1024
_CHECKPOINT_BYTES: Final = 128 * 1024 * 1024
_MEGABYTE: Final = 1_000_000
_FREED_BYTES: Final = 31 * 1024 * 1024

_What = Literal["prepare", "begin", "block", "end", "file"]


@dataclass(frozen=True)
class _Step:
    """What a job is for.

    Attributes:
        what: `prepare`: nothing to take; `begin` and `end` of a segment; a `block`; the end of a `file`.
        file: that it belongs to.
        segment: number of the segment.
    """

    what: _What
    file: OpenFile
    segment: int


def write_weights(
    plans: Sequence[FilePlan],
    folder: Path,
    journal: Journal,
    *,
    algorithm: Algorithm,
    link: bool,
    progress: Progress,
) -> tuple[WrittenFile, ...]:
    """Write the weight files of a result, or what is missing of them.

    Args:
        plans: the files.
        folder: where they go.
        journal: of what is there already; it is kept up to date.
        algorithm: of the hashes.
        link: whether a file that is the base's may be a hard link to it.
        progress: counts megabytes.

    Returns:
        What was seen of each file, in their order.

    Raises:
        BadInputError: a base that changed or is damaged, edits that do not fit, an overflow.
        OSError: the disk is full, or cannot be written.
    """
    workers = worker_count()
    _keep_freed_memory()
    _check_finished(journal, folder, algorithm)
    total = sum(plan.size for plan in plans)
    with (
        ExitStack() as opened,
        one_blas_thread(),
        _Syncing(journal) as syncing,
        progress.task("writing weights, MB", -(-total // _MEGABYTE)) as advance,
    ):

        def files() -> Iterator[OpenFile]:
            for plan in plans:
                if plan.name not in journal.done:
                    done = journal.checkpoints.get(plan.name)
                    file = OpenFile(plan, folder, algorithm, link=link, done=done)
                    opened.callback(file.close)
                    yield file

        counted = sum(journal.done[plan.name].size for plan in plans if plan.name in journal.done)
        advance(counted // _MEGABYTE)
        with closing(in_order(_steps(files()), workers=workers, ahead=2 * workers + 2)) as steps:
            for step, block in steps:
                file = step.file
                if step.what == "begin":
                    file.begin_segment(file.plan.segments[step.segment])
                elif block is not None:
                    file.take(block)
                    before, counted = counted, counted + len(block.written)
                    advance(counted // _MEGABYTE - before // _MEGABYTE)
                    syncing.written(file, len(block.written))
                elif step.what == "end":
                    file.end_segment()
                    syncing.safe_place(file, step.segment + 1)
                elif step.what == "file":
                    syncing.finish(file)
    return tuple(journal.done[plan.name] for plan in plans)


def _check_finished(journal: Journal, folder: Path, algorithm: Algorithm) -> None:
    """Forget the finished files that are no longer what was noted: they are written anew."""
    for file in list(journal.done.values()):
        path = folder / file.name
        if path.is_symlink() or not path.is_file() or hash_file(path, algorithm) != (file.size, file.hash):
            del journal.done[file.name]


def _keep_freed_memory() -> None:
    """Let the workers get the memory of one block back for the next.

    glibc returns what lies free at the top of a heap to the system, from 128 KiB on, and takes it anew page by page:
    a quarter of the time of a bake. It raises that bound by itself to twice the largest block that was mapped and
    freed, of at most 32 MiB; so one such block is freed.
    """
    np.empty(_FREED_BYTES, np.uint8)


def _steps(files: Iterator[OpenFile]) -> Iterator[tuple[_Step, Callable[[], Block | None]]]:
    """All jobs, those that prepare a stretch before the blocks of the one in front of it."""
    held: list[tuple[OpenFile, int, Stretch | None]] = []
    for file in files:
        for number in range(file.first, len(file.plan.segments)):
            held.append((file, number, None))
            for stretch in file.plan.segments[number].stretches():
                if stretch.prepare is not None:
                    yield _Step("prepare", file, number), _running(stretch.prepare)
                    yield from _blocks(held)
                    held = []
                held.append((file, number, stretch))
        held.append((file, len(file.plan.segments), None))
    yield from _blocks(held)


def _blocks(
    held: list[tuple[OpenFile, int, Stretch | None]],
) -> Iterator[tuple[_Step, Callable[[], Block | None]]]:
    """The blocks of stretches; the end of a segment or file stands before the begin of the next."""
    for file, number, stretch in held:
        if stretch is not None:
            for job in stretch.blocks:
                yield _Step("block", file, number), job
            continue
        if number > file.first:
            yield _Step("end", file, number - 1), _nothing
        what: _What = "begin" if number < len(file.plan.segments) else "file"
        yield _Step(what, file, number), _nothing


def _running(prepare: Callable[[], None]) -> Callable[[], None]:
    return prepare


def _nothing() -> None:
    """The job of a step that only marks a place."""


class _Syncing:
    """A thread that syncs files behind the writing, notes in the journal what is safe, and finishes files."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="sync")
        self._waiting: list[Future[Any]] = []
        self._unsynced = self._unnoted = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                for future in self._waiting:
                    future.result()
        finally:
            self._pool.shutdown(cancel_futures=True)

    def written(self, file: OpenFile, count: int) -> None:
        """Bytes that are not synced yet."""
        self._unsynced += count
        self._unnoted += count
        if self._unsynced >= _SYNC_BYTES and not self._busy():
            self._unsynced = 0
            self._submit(file.sync)

    def safe_place(self, file: OpenFile, segment: int) -> None:
        """A segment begins here: a run that is killed later may go on from it."""
        if file.is_shared or self._unnoted < _CHECKPOINT_BYTES:
            return
        self._unnoted = self._unsynced = 0
        checkpoint = file.checkpoint(segment)

        def note() -> None:
            file.sync()
            self._journal.reached(checkpoint)

        self._submit(note)

    def finish(self, file: OpenFile) -> None:
        """All of the file is written."""
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
        self._waiting.append(self._pool.submit(job))
