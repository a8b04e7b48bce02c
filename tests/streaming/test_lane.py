"""A lane runs its jobs in order, in the threads of its pool, and hands on what goes wrong."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from alignez_bake.streaming.lane import Lane


@pytest.fixture(params=[1, 3])
def pool(request):
    with ThreadPoolExecutor(request.param) as threads:
        yield threads


@pytest.mark.parametrize("most", [1, 4, 1000])
def test_jobs_run_one_at_a_time_in_their_order(pool, most):
    lane, ran, running = Lane(pool, most), [], threading.Lock()

    def job(number):
        assert running.acquire(blocking=False)
        time.sleep(0.0005 * (number % 3))
        ran.append(number)
        running.release()

    for number in range(50):
        lane.submit(lambda number=number: job(number))
    lane.settle()
    assert ran == list(range(50))


def test_no_more_jobs_wait_than_asked_for():
    go_on, waiting = threading.Event(), []
    with ThreadPoolExecutor(1) as pool:
        lane = Lane(pool, 2)
        lane.submit(go_on.wait)

        def rest():
            for number in range(5):
                lane.submit(lambda: None)
                waiting.append(number)

        caller = threading.Thread(target=rest)
        caller.start()
        time.sleep(0.05)
        assert len(waiting) <= 3
        go_on.set()
        caller.join()
        lane.settle()
    assert len(waiting) == 5


def test_a_full_lane_inside_of_another_of_the_same_pool():
    """With one thread there is nobody else to make room."""
    ran = []
    with ThreadPoolExecutor(1) as pool:
        outer, inner = Lane(pool, 4), Lane(pool, 2)

        def job(number):
            for part in range(10):
                inner.submit(lambda: ran.append((number, part)), inside=True)  # noqa: B023  # run before the next
            inner.settle()

        for number in range(3):
            outer.submit(lambda number=number: job(number))
        outer.settle()
    assert [number for number, _ in ran] == [0] * 10 + [1] * 10 + [2] * 10


def test_an_error_ends_the_lane(pool):
    lane, ran = Lane(pool, 100), []

    def fails():
        raise OSError("disk")

    lane.submit(lambda: ran.append(1))
    lane.submit(fails)
    with pytest.raises(OSError, match="disk"):
        lane.settle()
    with pytest.raises(OSError, match="disk"):
        lane.submit(lambda: ran.append(2))
    assert ran == [1]


def test_what_is_abandoned_does_not_run():
    begun, go_on, ran = threading.Event(), threading.Event(), []
    with ThreadPoolExecutor(1) as pool:
        lane = Lane(pool, 100)

        def first():
            begun.set()
            go_on.wait()
            ran.append(1)

        lane.submit(first)
        lane.submit(lambda: ran.append(2))
        begun.wait()
        threading.Timer(0.02, go_on.set).start()
        lane.abandon()
        assert ran == [1]
    assert ran == [1]
