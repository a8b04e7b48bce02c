"""Jobs that run side by side, with their results in order."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable
    from concurrent.futures import Executor, Future

Tag = TypeVar("Tag")
Result = TypeVar("Result")


def in_order(
    jobs: Iterable[tuple[Tag | None, Callable[[], Result]]], pool: Executor, *, ahead: int
) -> Generator[tuple[Tag, Result]]:
    """The results of jobs, in order, while later ones run already.

    Jobs begin in order, so one may wait for a result of an earlier one. An error of a job is raised in its place; what
    has not begun by then never runs.

    A job without a tag makes what later jobs wait for by themselves: it gives nothing back, and nothing waits for it
    here, so that a long one does not hold up the results behind it. Its error is raised where it is waited for.

    Args:
        jobs: each with a tag that comes back with its result, or None; taken one by one, as there is room.
        pool: whose threads run them.
        ahead: most jobs that are taken and whose results were not.
    """
    waiting: deque[tuple[Tag | None, Future[Result]]] = deque()
    try:
        for tag, job in jobs:
            waiting.append((tag, pool.submit(job)))
            while len(waiting) >= ahead:
                first, future = waiting.popleft()
                if first is not None:
                    yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            if first is not None:
                yield first, future.result()
    finally:
        # The last first: a job that waits for an earlier one must not begin once that is cancelled.
        for _, future in reversed(waiting):
            future.cancel()
