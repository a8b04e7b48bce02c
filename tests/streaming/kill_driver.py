"""Kill bakes, look at what is left, and go on: a process of its own, whose children are forked and begin at once.

Run as `python kill_driver.py` with `Settings` as JSON on standard input; standard output is `Found` as JSON.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import blake3  # noqa: F401
import rich.progress  # noqa: F401

# What a bake imports as it goes, so that the children need not.
from alignez_bake.cli.main import build_app
from alignez_bake.cli.shell import run
from alignez_bake.integrity import leaves
from alignez_bake.lowering import matrix_change
from alignez_bake.streaming import background
from alignez_bake.streaming.journal import Journal

if TYPE_CHECKING:
    from collections.abc import Callable

# Small enough that a tiny model has many leaves, syncs and places to go on from.
LEAF_BYTES, BLOCK_VALUES, SYNC_BYTES, CHECKPOINT_BYTES = 4096, 256, 4096, 8192
CHANGES = ("pwrite", "fsync", "fdatasync", "replace", "rename", "link", "unlink", "rmdir", "mkdir", "ftruncate")


@dataclass(frozen=True)
class Settings:
    """What is killed, and when.

    Attributes:
        command: arguments of the command line but for `--out`.
        base: its base, which must stay as it is.
        work: an empty folder.
        stride: kill at every so many-th change of the disk, torn and whole writes in turn; 0: not there.
        random_kills: kills at random times.
        seed: of the times.
    """

    command: list[str]
    base: str
    work: str
    stride: int = 0
    random_kills: int = 0
    seed: int = 0


@dataclass
class Found:
    """What was seen.

    Attributes:
        kills: how many there were.
        resumed: runs after a kill that found a journal with finished bytes in it.
        saved: bytes of weights that these did not write again, most of all of them.
        changes: of the disk that an undisturbed bake makes.
        wrong: what was not as it must be; empty.
    """

    kills: int = 0
    resumed: int = 0
    saved: int = 0
    changes: int = 0
    wrong: list[str] = field(default_factory=list)


class Changes:
    """Counts what a process changes on the disk, and kills it in front of one change, or in the middle of it."""

    def __init__(self, kill_at: int | None, *, torn: bool) -> None:
        """Take the place of the system's calls."""
        self.count = self.bytes = 0
        self._kill_at, self._torn, self._lock = kill_at, torn, threading.Lock()
        for name in CHANGES:
            setattr(os, name, self._counted(name, getattr(os, name)))
        append = Journal._append
        Journal._append = self._line(append)

    def _counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            with self._lock:  # the other threads stand still when it is killed
                self.count += 1
                if self.count == self._kill_at:
                    if self._torn and name == "pwrite":
                        call(arguments[0], arguments[1][: len(arguments[1]) // 2], *arguments[2:])
                    os.kill(os.getpid(), signal.SIGKILL)
                if name == "pwrite":
                    self.bytes += len(arguments[1])
            return call(*arguments, **named)

        return counted

    def _line(self, append: Callable[..., None]) -> Callable[..., None]:
        def appended(journal: Journal, line: Any) -> None:
            with self._lock:
                self.count += 1
                if self.count == self._kill_at:
                    if self._torn and journal.path is not None:
                        with journal.path.open("ab") as file:
                            file.write(json.dumps(line).encode()[:-20])
                    os.kill(os.getpid(), signal.SIGKILL)
            append(journal, line)

        return appended


class Child:
    """A bake in a process of its own."""

    def __init__(self, command: list[str], report: Path, *, kill_at: int | None = None, torn: bool = False) -> None:
        """Begin it."""
        self._report = report
        report.unlink(missing_ok=True)
        self.pid = os.fork()
        if self.pid == 0:
            status = 3
            try:
                with Path(os.devnull).open("w") as nothing, report.with_suffix(".err").open("w") as errors:
                    sys.stdout, sys.stderr = nothing, errors
                    background._SYNC_BYTES, background._CHECKPOINT_BYTES = SYNC_BYTES, CHECKPOINT_BYTES
                    leaves.LEAF_BYTES = LEAF_BYTES
                    matrix_change.row_blocks.__defaults__ = (BLOCK_VALUES,)
                    changes = Changes(kill_at, torn=torn)
                    status = run(build_app(), command)
                    errors.flush()
                    report.write_text(json.dumps([changes.count, changes.bytes]))
            finally:
                os._exit(status)

    def wait(self) -> int | None:
        """Its exit status; None: it was killed."""
        _, status = os.waitpid(self.pid, 0)
        return None if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)

    def counted(self) -> tuple[int, int]:
        """Of a child that ended by itself: changes of the disk, and bytes of weights written."""
        changes, count = json.loads(self._report.read_text())
        return changes, count

    def errors(self) -> str:
        """Its standard error."""
        return self._report.with_suffix(".err").read_text()


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Driver:
    """Kills, checks and goes on."""

    def __init__(self, settings: Settings) -> None:
        """Make the undisturbed result."""
        self.settings, self.found = settings, Found()
        self.work = Path(settings.work)
        self.out, self.partial = self.work / "out", self.work / ".out.partial"
        self.report = self.work.with_name("report.json")
        self.base = contents(Path(settings.base))
        began = time.monotonic()
        child = self.child()
        assert child.wait() == 0, child.errors()
        self.duration = time.monotonic() - began
        self.found.changes, self.whole_bytes = child.counted()
        self.whole = contents(self.out)
        shutil.rmtree(self.out)

    def child(self, **kill: Any) -> Child:
        """The command, begun."""
        return Child([*self.settings.command, "--out", str(self.out)], self.report, **kill)

    def wrong(self, what: str) -> None:
        """Note what is not as it must be."""
        self.found.wrong.append(f"kill {self.found.kills}: {what}")

    def after_kill(self) -> None:
        """The base is whole, and so is what has the name of a result."""
        self.found.kills += 1
        if contents(Path(self.settings.base)) != self.base:
            self.wrong("the base changed")
        if self.out.exists() and contents(self.out) != self.whole:
            self.wrong("what has the name of a result is none")

    def finish(self) -> None:
        """The same command goes on, to the same result, with nothing left beside it."""
        if not self.out.exists():
            had_places = self.has_places()
            child = self.child()
            if (status := child.wait()) != 0:
                self.wrong(f"the next run ended with {status}: {child.errors()}")
                shutil.rmtree(self.partial, ignore_errors=True)
                return
            if had_places:
                self.note_resumed(child)
        self.after_finish()

    def has_places(self) -> bool:
        """Whether something is there to go on from."""
        journal = self.partial / "alignez" / "journal.jsonl"
        return journal.is_file() and journal.read_bytes().count(b"\n") > 1

    def note_resumed(self, child: Child) -> None:
        """A run that was there to go on has ended."""
        self.found.resumed += 1
        self.found.saved = max(self.found.saved, self.whole_bytes - child.counted()[1])

    def after_finish(self) -> None:
        """The result is the undisturbed one."""
        now = contents(self.out)
        if now != self.whole:
            names = sorted(name for name in {*now, *self.whole} if now.get(name) != self.whole.get(name))
            self.wrong(f"the result differs in {names}")
        if contents(Path(self.settings.base)) != self.base:
            self.wrong("the base changed")
        shutil.rmtree(self.out)
        if left := sorted(path.name for path in self.work.iterdir()):
            self.wrong(f"left over: {left}")
            shutil.rmtree(self.partial, ignore_errors=True)

    def at_changes(self) -> None:
        """Kill in front of, or in the middle of, each change."""
        for kill_at in range(1, self.found.changes + 1, self.settings.stride):
            child = self.child(kill_at=kill_at, torn=kill_at // self.settings.stride % 2 == 0)
            if child.wait() is not None:  # threads: there may be a few changes more or less
                self.after_finish()
                continue
            self.after_kill()
            self.finish()

    def at_random(self) -> None:
        """Kill at random times, what goes on too, until it is done; and again."""
        rng, begun = random.Random(self.settings.seed), self.found.kills
        while self.found.kills - begun < self.settings.random_kills:
            had_places, child = self.has_places(), self.child()
            time.sleep(rng.uniform(0, 1.1 * self.duration))
            os.kill(child.pid, signal.SIGKILL)
            if (status := child.wait()) is None:
                self.after_kill()
            elif status == 0 and had_places:
                self.note_resumed(child)
            elif status != 0:
                self.wrong(f"a run ended with {status}: {child.errors()}")
                shutil.rmtree(self.partial, ignore_errors=True)
            if self.out.exists():
                self.after_finish()
        self.finish()


def main() -> None:
    """Do what standard input says."""
    settings = Settings(**json.load(sys.stdin))
    driver = Driver(settings)
    if settings.stride:
        driver.at_changes()
    if settings.random_kills:
        driver.at_random()
    json.dump(asdict(driver.found), sys.stdout)


if __name__ == "__main__":
    main()
