"""Jobs that run side by side, with their results taken in order, by as many threads as there are cores.

Each thread looks for itself what is to be done next, so nobody has to be woken for a job: waking a thread that sleeps
can take as long as reading a block.
"""

from __future__ import annotations

from functools import partial
from threading import Condition, Thread
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

Tag = TypeVar("Tag")
Result = TypeVar("Result")


class _Outcome(NamedTuple, Generic[Tag, Result]):
    """What became of a job."""

    tag: Tag
    result: Result | None
    error: BaseException | None


class Crew(Generic[Tag, Result]):
    """Some threads that share two kinds of work: jobs, and taking their results in order."""

    def __init__(self, workers: int, *, ahead: int) -> None:
        """Start nothing yet.

        Args:
            workers: threads.
            ahead: most jobs that have begun and whose results are not taken.
        """
        self._workers, self._ahead = workers, ahead
        self._state = Condition()
        self._jobs: Iterator[tuple[Tag | None, Callable[[], Result]]] = iter(())
        self._take: Callable[[Tag, Result], None] | None = None
        self._outcomes: dict[int, _Outcome[Tag, Result]] = {}
        self._begun = self._taken = 0
        self._no_more = self._taking = False
        self._failed: BaseException | None = None

    def run(self, jobs: Iterable[tuple[Tag | None, Callable[[], Result]]], take: Callable[[Tag, Result], None]) -> None:
        """Run jobs, and take their results.

        Jobs begin in order, so one may wait for what an earlier one makes. A job without a tag makes something that
        later ones wait for by themselves: it has no result, and hands its error to those that wait.

        Args:
            jobs: each with a tag or None; taken one by one, as there is room, by one thread at a time.
            take: is given each tag with its result, in order, never two at once, by any thread.

        Raises:
            BaseException: the first error of a job, in its place, or of `jobs` or `take`; nothing begins afterwards.
        """
        self._jobs, self._take = iter(jobs), take
        threads = [Thread(target=self._work, name=f"stream_{number}") for number in range(self._workers)]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        except BaseException as error:  # noqa: BLE001  # such as Ctrl-C, which comes to this thread; raised below
            self._fail(error)
        for thread in threads:
            if thread.ident is not None:
                thread.join()
        if self._failed is not None:
            raise self._failed

    def _work(self) -> None:
        try:
            while (work := self._next()) is not None:
                work()
        except BaseException as error:  # noqa: BLE001  # raised by `run`
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        with self._state:
            self._failed = self._failed or error
            self._state.notify_all()

    def _next(self) -> Callable[[], object] | None:
        """What to do next: first what others wait for."""
        with self._state:
            while self._failed is None:
                if self._taken in self._outcomes and not self._taking:
                    self._taking = True
                    return self._take_all
                if not self._no_more and self._begun - self._taken < self._ahead:
                    tag, job = next(self._jobs, (None, None))
                    if job is None:
                        self._no_more = True
                        continue
                    if tag is None:
                        return job
                    self._begun += 1
                    return partial(self._run_job, self._begun - 1, tag, job)
                if self._no_more and self._begun == self._taken:
                    break
                self._state.wait()
            self._state.notify_all()
            return None

    def _run_job(self, number: int, tag: Tag, job: Callable[[], Result]) -> None:
        try:
            outcome = _Outcome[Tag, Result](tag, job(), None)
        except BaseException as error:  # noqa: BLE001  # raised in its place
            outcome = _Outcome[Tag, Result](tag, None, error)
        with self._state:
            self._outcomes[number] = outcome

    def _take_all(self) -> None:
        """Take results as long as the next one is there."""
        assert self._take is not None
        while True:
            with self._state:
                outcome = self._outcomes.pop(self._taken, None)
                if outcome is None or self._failed is not None:
                    self._taking = False
                    return
            if outcome.error is not None:
                raise outcome.error
            self._take(outcome.tag, outcome.result)  # type: ignore[arg-type]  # there is one where there is no error
            with self._state:
                self._taken += 1
                self._state.notify()
