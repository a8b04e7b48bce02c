"""The weight files of a result: written as a stream of leaves, each of which is made by itself.

Memory does not grow with the model: what is held are a few leaves a thread, and (B, A) of two or three matrices.

Threads: workers read, compute and hash, three write and one syncs behind them, so that the disk is busy from early on.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

import numpy as np

from alignez_bake.integrity.hashing import hash_file
from alignez_bake.streaming.background import Background
from alignez_bake.streaming.crew import Crew
from alignez_bake.streaming.open_file import OpenFile
from alignez_bake.streaming.resources import Resources
from alignez_bake.streaming.step import Step
from alignez_bake.thread_limits import one_blas_thread, worker_count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from alignez_bake.integrity.hashing import Algorithm
    from alignez_bake.progress import Progress
    from alignez_bake.streaming.file_plan import FilePlan
    from alignez_bake.streaming.journal import Journal
    from alignez_bake.streaming.seen import SeenLeaf
    from alignez_bake.streaming.written import WrittenFile

_MEGABYTE: Final = 1_000_000
_FREED_BYTES: Final = 31 * 1024 * 1024
_AHEAD: Final = 4
"""Leaves for each worker that may be made before an earlier one: what is kept of them is small."""


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
        Background(journal) as background,
        progress.task("writing weights, MB", -(-total // _MEGABYTE)) as advance,
    ):
        resources = Resources(algorithm, background, workers)

        def files() -> Iterator[OpenFile]:
            for plan in plans:
                if plan.name not in journal.done:
                    file = OpenFile(plan, folder, resources, link=link, done=journal.checkpoints.get(plan.name))
                    opened.callback(file.close)
                    yield file

        counted = sum(journal.done[plan.name].size for plan in plans if plan.name in journal.done)
        advance(counted // _MEGABYTE)

        def take(step: Step, leaf: SeenLeaf | None) -> None:
            nonlocal counted
            if leaf is None:
                background.finish(step.file)
                return
            step.file.take(leaf)
            if leaf.mark is None:
                return
            background.taken(step.file, leaf.write, leaf.size)
            background.safe_place(step.file)
            before, counted = counted, counted + leaf.size
            advance(counted // _MEGABYTE - before // _MEGABYTE)

        Crew[Step, "SeenLeaf | None"](workers, ahead=_AHEAD * workers).run(_steps(files()), take)
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


def _steps(files: Iterator[OpenFile]) -> Iterator[tuple[Step | None, Callable[[], SeenLeaf | None]]]:
    """All jobs, those that prepare something, without a step, before the leaves in front of the one that needs it."""
    held: list[tuple[Step, Callable[[], SeenLeaf | None]]] = []
    for file in files:
        for number in file.leaves:
            preparations, make = file.maker.job(number)
            if preparations:
                yield from ((None, prepare) for prepare in preparations)
                yield from held
                held = []
            held.append((Step("leaf", file), make))
        held.extend((Step("leaf", file), file.maker.base_job(number)) for number in file.base_leaves)
        held.append((Step("end", file), _nothing))
    yield from held


def _nothing() -> None:
    """The job of a step that only marks a place."""
