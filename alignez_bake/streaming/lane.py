"""Jobs one after the other, in the threads of a pool that others use too."""

from __future__ import annotations

from collections import deque
from threading import Condition
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor


class Lane:
    """Runs jobs in the order in which they came, never two at once, in whichever thread of the pool is free.

    A thread of its own would be one more than there are cores: while it waits for one, it may hold the interpreter's
    lock, and then all wait.
    """

    def __init__(self, pool: Executor, most: int) -> None:
        """An empty lane.

        Args:
            pool: whose threads run the jobs.
            most: jobs that wait, at most.
        """
        self._pool, self._most = pool, most
        self._jobs: deque[Callable[[], None]] = deque()
        self._state = Condition()
        self._called = self._active = False
        self._error: BaseException | None = None

    def submit(self, job: Callable[[], None], *, inside: bool = False) -> None:
        """Run a job after those before it.

        Args:
            job: what to do.
            inside: whether the caller is a job of the same pool. Where there is no room it then runs those before it
                itself, since there may be no other thread to do so; another caller waits.

        Raises:
            BaseException: of a job before it; those behind that one never run.
        """
        with self._state:
            full = self._full
        if full and inside:
            self._run_all()
        with self._state:
            self._state.wait_for(lambda: not self._full)
            self._raise()
            self._jobs.append(job)
            if not self._called:
                self._called = True
                self._pool.submit(self._answer)

    def settle(self) -> None:
        """Wait until all jobs have run, running them here where no thread does.

        Raises:
            BaseException: of a job.
        """
        self._run_all()
        with self._state:
            self._state.wait_for(lambda: not self._active)
            self._raise()

    def abandon(self) -> None:
        """Forget the jobs that wait, and wait for the one that runs."""
        with self._state:
            self._jobs.clear()
            self._state.wait_for(lambda: not self._active)

    @property
    def _full(self) -> bool:
        return len(self._jobs) >= self._most

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _answer(self) -> None:
        with self._state:
            self._called = False
        self._run_all()

    def _run_all(self) -> None:
        """Run what waits, unless another thread is at it already."""
        with self._state:
            if self._active:
                return
            self._active = True
        while (job := self._next()) is not None:
            try:
                job()
            except BaseException as error:  # noqa: BLE001  # raised where the next job comes, or at the end
                with self._state:
                    self._error = error
                    self._jobs.clear()

    def _next(self) -> Callable[[], None] | None:
        with self._state:
            job = self._jobs.popleft() if self._jobs else None
            self._active = job is not None
            self._state.notify_all()
            return job
