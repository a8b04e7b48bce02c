"""The most memory that a process and its children held, sampled from outside. Linux alone.

Nothing runs inside of what is measured, so any program can be. Pages that processes share count once for each.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from types import TracebackType

INTERVAL: Final = 0.02
"""Seconds between two samples."""
_PROC: Final = Path("/proc")
_SAMPLES_PER_LOOK: Final = 10
"""Looking for new children reads a line of every process of the machine, so that is done less often."""


@dataclass(frozen=True)
class Resident:
    """Resident bytes, of one process or of several together.

    Attributes:
        anonymous: heap, stacks and what else is no file's: what the machine must have to spare.
        total: with pages of mapped files and shared memory.
        highest: the most that `total` has been, as the system itself keeps it.
    """

    anonymous: int
    total: int
    highest: int


class MemorySampler:
    """Samples a process and all that descend from it, from `with` to its end.

    `anonymous` is the highest sum that was seen, so what lasts less than an interval can be missed. `total` is also
    at least the highest that the system kept for the process itself, which misses nothing before the last sample.
    """

    def __init__(self, pid: int) -> None:
        """For a process that runs.

        Args:
            pid: its id.
        """
        self.anonymous = 0
        self.total = 0
        self.samples = 0
        self._pid = pid
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        pids = {self._pid}
        while True:
            if self.samples % _SAMPLES_PER_LOOK == 0:
                pids = family(self._pid)
            found = [one for pid in pids if (one := resident(pid)) is not None]
            self.anonymous = max(self.anonymous, sum(one.anonymous for one in found))
            self.total = max(self.total, sum(one.total for one in found), *(one.highest for one in found), 0)
            self.samples += 1
            if self._over.wait(INTERVAL):
                return


def resident(pid: int) -> Resident | None:
    """What a process holds now; None for one that has ended."""
    text = _read(_PROC / str(pid) / "status")
    sizes = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.startswith(("Rss", "VmRSS", "VmHWM")):
            sizes[name] = int(value.split()[0]) * 1024
    if not sizes:  # gone, or ended and not yet waited for
        return None
    return Resident(sizes["RssAnon"], sizes["VmRSS"], sizes["VmHWM"])


def family(pid: int) -> set[int]:
    """A process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for folder in _PROC.iterdir():
        if folder.name.isdigit() and (text := _read(folder / "stat")):
            # The name before may hold spaces and brackets itself; behind it come state and parent.
            parent = int(text.rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(folder.name))
    found = {pid}
    ahead = [pid]
    while ahead:
        new = [child for child in children.get(ahead.pop(), ()) if child not in found]
        found.update(new)
        ahead += new
    return found


def available() -> int:
    """Bytes that a new process could take without swapping."""
    for line in (_PROC / "meminfo").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    raise OSError(f"{_PROC / 'meminfo'} has no MemAvailable")


def _read(file: Path) -> str:
    """A file of a process; empty for one that has ended meanwhile."""
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""
