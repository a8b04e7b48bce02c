"""Progress of long work: what the work tells, and how a terminal or a log file shows it."""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterator

_SHOWN_AFTER_SECONDS = 2.0
_LINE_EVERY_SECONDS = 10.0


class Advance(Protocol):
    """Says that `n` more units of a task are done."""

    def __call__(self, n: int = 1) -> None:
        """Count `n` units as done."""


class Progress(Protocol):
    """Where long work says how far it is."""

    def task(self, description: str, total: int) -> AbstractContextManager[Advance]:
        """Begin a task of `total` units; inside the context the yielded function counts them."""


class NoProgress:
    """Says nothing: the default of every function that takes a `Progress`."""

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Advance]:
        """Count for nobody."""
        del description, total

        def advance(n: int = 1) -> None:
            del n

        yield advance


class RichProgress:
    """A bar with the time left where the stream is a terminal, a line every ten seconds where it is not.

    Either shows only once a task has run for two seconds, so that short work stays silent.

    Args:
        stream: standard error unless given; standard output stays free for results.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        """Write to `stream`."""
        self._stream = sys.stderr if stream is None else stream

    def task(self, description: str, total: int) -> AbstractContextManager[Advance]:
        """Show one task; tasks do not nest."""
        if self._stream.isatty():
            return self._bar(description, total)
        return self._lines(description, total)

    @contextmanager
    def _bar(self, description: str, total: int) -> Iterator[Advance]:
        # Imported when needed: a command that shows nothing does not pay for it.
        from rich import progress as rich_progress  # noqa: PLC0415
        from rich.console import Console  # noqa: PLC0415

        bars = rich_progress.Progress(
            rich_progress.TextColumn("{task.description}"),
            rich_progress.BarColumn(),
            rich_progress.MofNCompleteColumn(),
            rich_progress.TimeRemainingColumn(),
            console=Console(file=self._stream),
        )
        bar = bars.add_task(description, total=total)
        began = time.monotonic()
        shown = False

        def advance(n: int = 1) -> None:
            nonlocal shown
            bars.advance(bar, n)
            if not shown and time.monotonic() - began >= _SHOWN_AFTER_SECONDS:
                shown = True
                bars.start()

        try:
            yield advance
        finally:
            if shown:
                bars.stop()

    @contextmanager
    def _lines(self, description: str, total: int) -> Iterator[Advance]:
        began = time.monotonic()
        done = 0
        next_line = began + _SHOWN_AFTER_SECONDS

        def advance(n: int = 1) -> None:
            nonlocal done, next_line
            done += n
            now = time.monotonic()
            if now >= next_line:
                next_line = now + _LINE_EVERY_SECONDS
                left = (now - began) * (total - done) / done if done else 0.0
                print(f"{description}: {done}/{total}, about {left:.0f} s left", file=self._stream, flush=True)

        yield advance
