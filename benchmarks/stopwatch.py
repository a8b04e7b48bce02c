"""Seconds by step, taken from what the library tells its `Progress`."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from alignez_bake.progress import Advance


class Stopwatch:
    """A `Progress` that shows nothing and sums the seconds of all tasks, by what they are called."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        """No task yet; `time.process_time` as the clock counts seconds of the processor."""
        self._clock = clock
        self.by_task: dict[str, float] = {}

    @property
    def seconds(self) -> float:
        """Of all tasks; one within another counts twice."""
        return sum(self.by_task.values())

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Advance]:
        """Time one task."""
        del total

        def advance(n: int = 1) -> None:
            del n

        began = self._clock()
        try:
            yield advance
        finally:
            self.by_task[description] = self.by_task.get(description, 0.0) + self._clock() - began
