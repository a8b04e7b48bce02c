import io

import pytest

from alignez_bake import progress as progress_module
from alignez_bake.progress import NoProgress, RichProgress


class Clock:
    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress_module, "time", clock)
    return clock


def test_a_log_gets_a_line_now_and_then(clock):
    log = io.StringIO()
    with RichProgress(log).task("writing pairs", 100) as advance:
        for _ in range(10):
            clock.now += 4
            advance(10)
    lines = log.getvalue().splitlines()
    assert lines[0] == "writing pairs: 10/100, about 36 s left"
    assert lines[1:] == [
        "writing pairs: 40/100, about 24 s left",
        "writing pairs: 70/100, about 12 s left",
        "writing pairs: 100/100, about 0 s left",
    ]


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_short_work_is_silent(clock, stream):
    log = stream()
    with RichProgress(log).task("writing pairs", 3) as advance:
        for _ in range(3):
            clock.now += 0.5
            advance()
    assert log.getvalue() == ""


def test_a_terminal_gets_a_bar(clock):
    terminal = Terminal()
    with RichProgress(terminal).task("writing pairs", 4) as advance:
        clock.now += 3
        advance(3)
    assert "writing pairs" in terminal.getvalue()
    assert "3/4" in terminal.getvalue()


def test_nothing_asked_nothing_said(capfd):
    with NoProgress().task("writing pairs", 4) as advance:
        advance()
        advance(3)
    assert capfd.readouterr() == ("", "")
