"""Seconds by step, taken from what the library tells its `Progress`."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from alignez_bake.progress import Advance


class Stopwatch:
    """A `Progress` that shows nothing and sums the seconds of all tasks."""

    def __init__(self) -> None:
        """No task yet."""
        self.seconds = 0.0

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Advance]:
        """Time one task."""
        del description, total

        def advance(n: int = 1) -> None:
            del n

        began = time.perf_counter()
        try:
            yield advance
        finally:
            self.seconds += time.perf_counter() - began
