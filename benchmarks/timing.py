"""Timing of things that are compared: they take turns, so that a change of the machine's load meets all of them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from alignez_bake.progress import Progress


@dataclass(frozen=True)
class Timings:
    """Seconds of one task, run by run.

    Attributes:
        wall: on the clock.
        processor: of this process's threads; says what the clock would have shown on an idle machine with one
            thread.
    """

    wall: tuple[float, ...]
    processor: tuple[float, ...]

    @property
    def median(self) -> float:
        """Of the clock."""
        return median(self.wall)

    def text(self) -> str:
        """Median and, in brackets, lowest to highest."""
        return f"{self.median:.2f} ({min(self.wall):.2f} to {max(self.wall):.2f})"


@dataclass(frozen=True)
class Ratio:
    """How much longer one task takes than another.

    Attributes:
        medians: ratio of the median times on the clock.
        low: lowest ratio within one round.
        high: highest ratio within one round.
        processor: ratio of the median processor times.
    """

    medians: float
    low: float
    high: float
    processor: float

    @classmethod
    def of(cls, longer: Timings, shorter: Timings) -> Ratio:
        """The ratio of two tasks that took turns."""
        rounds = [one / other for one, other in zip(longer.wall, shorter.wall, strict=True)]
        return cls(
            medians=longer.median / shorter.median,
            low=min(rounds),
            high=max(rounds),
            processor=median(longer.processor) / median(shorter.processor),
        )

    def text(self, digits: int) -> str:
        """Ratio of medians, lowest to highest within a round, and that of processor time."""
        return (
            f"{self.medians:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f}; "
            f"processor time {self.processor:.{digits}f})"
        )


def taking_turns(
    tasks: Mapping[str, Callable[[], object]], *, runs: int, title: str, progress: Progress
) -> dict[str, Timings]:
    """Time every task `runs` times, one after the other in each round; every second round runs backwards.

    Args:
        tasks: by name; each should have run once before, so that nothing is done for the first time.
        runs: rounds.
        title: of the progress.
        progress: counts tasks.
    """
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in tasks}
    with progress.task(title, runs * len(tasks)) as advance:
        for number in range(runs):
            for name, task in list(tasks.items())[:: -1 if number % 2 else 1]:
                wall, processor = time.perf_counter(), time.process_time()
                task()
                found[name].append((time.perf_counter() - wall, time.process_time() - processor))
                advance()
    return {
        name: Timings(tuple(wall for wall, _ in pairs), tuple(processor for _, processor in pairs))
        for name, pairs in found.items()
    }
