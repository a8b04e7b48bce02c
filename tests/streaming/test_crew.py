"""Jobs side by side, results taken in order, errors in their place, and no thread left or asleep for ever."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future

import pytest

from alignez_bake.streaming.crew import Crew


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("stream")]


@pytest.fixture(autouse=True)
def _no_thread_left():
    assert threads() == []
    yield
    assert threads() == []


def results(jobs, workers=2, ahead=4):
    taken = []
    Crew(workers, ahead=ahead).run(jobs, lambda tag, result: taken.append((tag, result)))
    return taken


def slow_first(number):
    """The first jobs take the longest, so they end in the wrong order."""
    time.sleep(0.002 * (20 - number) if number < 20 else 0)
    return number * number


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("ahead", [1, 3, 100])
def test_results_are_taken_in_order_with_their_tags(workers, ahead):
    jobs = ((f"tag {number}", lambda number=number: slow_first(number)) for number in range(30))
    assert results(jobs, workers, ahead) == [(f"tag {number}", number * number) for number in range(30)]


@pytest.mark.parametrize("jobs", [[], [(None, lambda: None)]])
def test_nothing_to_take(jobs):
    assert results(jobs) == []


def test_jobs_run_side_by_side():
    meeting = threading.Barrier(3)
    assert len(results([(number, lambda: meeting.wait(timeout=20)) for number in range(3)], 3, 3)) == 3


def test_results_are_taken_one_at_a_time_while_jobs_go_on():
    busy, later = threading.Lock(), threading.Event()

    def take(tag, result):
        assert busy.acquire(blocking=False)
        if tag == 0:
            assert later.wait(timeout=20)
        busy.release()

    jobs = [(number, later.set if number == 5 else lambda: None) for number in range(60)]
    Crew(3, ahead=8).run(jobs, take)


def test_no_more_jobs_begin_than_asked_for():
    begun, taken, most = [], [], []

    def job(number):
        begun.append(number)
        most.append(len(begun) - len(taken))

    Crew(3, ahead=4).run(
        ((number, lambda number=number: job(number)) for number in range(40)), lambda tag, _: taken.append(tag)
    )
    assert taken == list(range(40))
    assert max(most) <= 4


def test_an_error_comes_in_its_place_and_what_has_not_begun_never_runs():
    ran, taken = [], []

    def job(number):
        ran.append(number)
        if number == 3:
            raise ValueError("the fourth")

    with pytest.raises(ValueError, match="the fourth"):
        Crew(2, ahead=6).run([(n, lambda n=n: job(n)) for n in range(50)], lambda tag, _: taken.append(tag))
    assert taken == [0, 1, 2]
    assert len(ran) <= 10


@pytest.mark.parametrize("where", ["source", "take"])
def test_an_error_elsewhere_ends_it(where):
    crew = Crew(2, ahead=4)

    def jobs():
        for number in range(50):
            if where == "source" and number == 5:
                raise OSError("no more")
            yield number, lambda: 0

    def take(tag, result):
        if tag == 3 and where == "take":
            raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        crew.run(jobs(), take)


def test_an_interrupt_of_the_caller_ends_all(monkeypatch):
    join, ran = threading.Thread.join, []

    def interrupted(thread, *arguments):
        if not ran:
            ran.append(None)
            raise KeyboardInterrupt
        join(thread, *arguments)

    monkeypatch.setattr(threading.Thread, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        results((number, lambda: time.sleep(0.01)) for number in range(10**6))


def test_a_job_without_a_tag_holds_up_nothing_that_does_not_wait_for_it():
    slow, made, taken = threading.Event(), Future(), []

    def prepare():
        assert slow.wait(timeout=20)
        made.set_result("made")

    def take(tag, result):
        taken.append((tag, result))
        if tag == 2:
            slow.set()

    jobs = [(None, prepare), *((number, lambda number=number: number) for number in range(3)), ("last", made.result)]
    Crew(2, ahead=3).run(jobs, take)
    assert taken == [(0, 0), (1, 1), (2, 2), ("last", "made")]
