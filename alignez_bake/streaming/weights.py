"""The weight files of a result: written as a stream, from blocks that are read and computed side by side.

Memory does not grow with the model: what is held are a few blocks a thread, and (B, A) of two or three matrices.

Threads: workers read, compute and hash, one writes and one syncs behind it, so that the disk is busy from early on.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

import numpy as np

from alignez_bake.integrity.hashing import hash_file
from alignez_bake.streaming.background import Background
from alignez_bake.streaming.open_file import OpenFile
from alignez_bake.streaming.resources import Resources
from alignez_bake.streaming.step import Step, What
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

_MEGABYTE: Final = 1_000_000
_FREED_BYTES: Final = 31 * 1024 * 1024


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
    resources = Resources(worker_count())
    _keep_freed_memory()
    _check_finished(journal, folder, algorithm)
    total = sum(plan.size for plan in plans)
    with (
        ExitStack() as opened,
        one_blas_thread(),
        Background(journal) as background,
        progress.task("writing weights, MB", -(-total // _MEGABYTE)) as advance,
    ):

        def files() -> Iterator[OpenFile]:
            for plan in plans:
                if plan.name not in journal.done:
                    done = journal.checkpoints.get(plan.name)
                    file = OpenFile(plan, folder, algorithm, resources, link=link, done=done)
                    opened.callback(file.close)
                    yield file

        counted = sum(journal.done[plan.name].size for plan in plans if plan.name in journal.done)
        advance(counted // _MEGABYTE)

        def take(step: Step, block: Block | None) -> None:
            nonlocal counted
            file = step.file
            if step.what == "begin":
                file.begin_segment(file.plan.segments[step.segment])
            elif block is not None:
                background.write(file, block)
                before, counted = counted, counted + len(block.written)
                advance(counted // _MEGABYTE - before // _MEGABYTE)
            elif step.what == "end":
                file.end_segment()
                background.safe_place(file, step.segment + 1)
            elif step.what == "file":
                background.finish(file)

        resources.crew.run(_steps(files()), take)
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


def _steps(files: Iterator[OpenFile]) -> Iterator[tuple[Step | None, Callable[[], Block | None]]]:
    """All jobs, those that prepare a stretch, without a step, before the blocks of the one in front of it."""
    held: list[tuple[OpenFile, int, Stretch | None]] = []
    for file in files:
        for number in range(file.first, len(file.plan.segments)):
            held.append((file, number, None))
            for stretch in file.plan.segments[number].stretches():
                if stretch.prepare is not None:
                    yield None, stretch.prepare
                    yield from _blocks(held)
                    held = []
                held.append((file, number, stretch))
        held.append((file, len(file.plan.segments), None))
    yield from _blocks(held)


def _blocks(
    held: list[tuple[OpenFile, int, Stretch | None]],
) -> Iterator[tuple[Step, Callable[[], Block | None]]]:
    """The blocks of stretches; the end of a segment or file stands before the begin of the next."""
    for file, number, stretch in held:
        if stretch is not None:
            for job in stretch.blocks:
                yield Step("block", file, number), job
            continue
        if number > file.first:
            yield Step("end", file, number - 1), _nothing
        what: What = "begin" if number < len(file.plan.segments) else "file"
        yield Step(what, file, number), _nothing


def _nothing() -> None:
    """The job of a step that only marks a place."""
