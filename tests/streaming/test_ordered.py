"""Jobs side by side, results in order, errors in their place, and no thread left."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from alignez_bake.streaming.ordered import in_order


@pytest.fixture
def pool():
    """Of as many threads as is said first."""
    with ExitStack() as open_pools:

        def with_workers(count):
            return open_pools.enter_context(ThreadPoolExecutor(count))

        yield with_workers


def slow_first(number):
    """The first jobs take the longest, so they end in the wrong order."""
    time.sleep(0.002 * (20 - number) if number < 20 else 0)
    return number * number


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("ahead", [1, 3, 100])
def test_results_are_in_order_with_their_tags(workers, ahead, pool):
    jobs = ((f"tag {number}", lambda number=number: slow_first(number)) for number in range(30))
    assert list(in_order(jobs, pool(workers), ahead=ahead)) == [
        (f"tag {number}", number * number) for number in range(30)
    ]


def test_jobs_run_side_by_side(pool):
    meeting = threading.Barrier(3)
    jobs = [(number, lambda: meeting.wait(timeout=20)) for number in range(3)]
    assert len(list(in_order(jobs, pool(3), ahead=3))) == 3


def test_no_more_jobs_are_taken_than_asked_for(pool):
    taken = []

    def jobs():
        for number in range(20):
            taken.append(number)
            yield number, lambda: None

    results = in_order(jobs(), pool(2), ahead=4)
    for received in range(10):
        next(results)
        assert len(taken) == received + 4
    results.close()


def test_an_error_comes_in_its_place_and_what_has_not_begun_never_runs(pool):
    ran, failed = [], threading.Event()

    def job(number):
        ran.append(number)
        if number == 3:
            failed.set()
            raise ValueError("the fourth")
        if number > 3:  # so that the one worker is busy when the error is met
            failed.wait()
            time.sleep(0.05)

    results = in_order([(n, lambda n=n: job(n)) for n in range(50)], pool(1), ahead=40)
    assert [next(results)[0] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="the fourth"):
        next(results)
    assert len(ran) < 10


def test_an_error_of_the_source_ends_it(pool):
    def jobs():
        yield 0, lambda: 0
        yield 1, lambda: 1
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        list(in_order(jobs(), pool(2), ahead=10))


def test_no_job_waits_for_an_earlier_one_that_was_cancelled(monkeypatch, pool):
    """Such a job would hold its thread for ever: it is cancelled before that one."""
    runs, go_on, made, waited = threading.Event(), threading.Event(), Future(), []
    cancel = Future.cancel

    def slowly(future):
        """The worker has time to take the next job in between."""
        cancelled = cancel(future)
        if cancelled:
            go_on.set()
            time.sleep(0.02)
        return cancelled

    def busy():
        runs.set()
        go_on.wait()

    def waiting():
        try:
            made.result(timeout=1)
        except TimeoutError:
            waited.append("in vain")

    jobs = [(0, lambda: None), (1, busy), (2, lambda: made.set_result(0)), *[(n, waiting) for n in range(3, 8)]]
    results = in_order(jobs, pool(1), ahead=8)
    next(results)
    runs.wait()
    monkeypatch.setattr(Future, "cancel", slowly)
    results.close()
    assert waited == []


def test_a_job_without_a_tag_holds_up_nothing_that_does_not_wait_for_it(pool):
    slow, made = threading.Event(), Future()

    def prepare():
        assert slow.wait(timeout=20)
        made.set_result("made")

    jobs = [(None, prepare), *((number, lambda number=number: number) for number in range(3)), ("last", made.result)]
    results = in_order(iter(jobs), pool(2), ahead=3)
    assert [next(results) for _ in range(3)] == [(number, number) for number in range(3)]
    slow.set()
    assert list(results) == [("last", "made")]


def test_the_error_of_a_job_without_a_tag_is_raised_where_it_is_waited_for(pool):
    made = Future()

    def prepare():
        made.set_exception(ValueError("no matrix"))
        raise ValueError("no matrix")

    jobs = [(None, prepare), ("before", lambda: 1), ("behind", made.result)]
    results = in_order(iter(jobs), pool(2), ahead=1)
    assert next(results) == ("before", 1)
    with pytest.raises(ValueError, match="no matrix"):
        next(results)
