"""One run of a command on a clean slate: seconds until its result is on the disk, memory, and bytes."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks.bake_memory import MemorySampler

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT: Final = Path(__file__).parents[1]
DROP_CACHES: Final = Path("/proc/sys/vm/drop_caches")
_EVERYTHING: Final = "3"
"""Pages of files, and what is known of folders and files."""
_BLOCK_BYTES: Final = 8 * 1024 * 1024
_SHOWN: Final = 300
_BOUNDS_OF_THREADS: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Run:
    """What one run took.

    Attributes:
        wall: seconds, from the start of the command to the end of the sync of its result.
        processor: seconds that command and sync computed, in user and system mode.
        anonymous: most resident bytes that are no file's, the command's children included.
        total: most resident bytes, with pages of mapped files.
        output_bytes: of all files of the result.
        new_bytes: of those that are not hard links to files of the base.
    """

    wall: float
    processor: float
    anonymous: int
    total: int
    output_bytes: int
    new_bytes: int


class FailedRunError(Exception):
    """A command ended with another status than 0; the message says how."""


def timed(command: Sequence[str], base: Path, out: Path, log: Path, most_bytes: int | None = None) -> Run:
    """Run a command that reads one folder and writes another, then sync what it wrote: both are on the clock.

    Args:
        command: and its arguments; it runs in the root of the repository, without a hub.
        base: the folder that it reads.
        out: the folder that it writes.
        log: file for what it prints.
        most_bytes: of memory of its own; it is refused more. No bound where None.

    Raises:
        FailedRunError: the command failed; with the last line that it printed.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with log.open("wb") as file:
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, env=_environment(), stdout=file, stderr=subprocess.STDOUT)
        if most_bytes is not None:
            resource.prlimit(process.pid, resource.RLIMIT_DATA, (most_bytes, most_bytes))
        try:
            with MemorySampler(process.pid) as memory:
                status = process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise
        if status == 0:
            subprocess.run(["sync", *_tree(out)], check=True)  # noqa: S607 - that of coreutils, as cp
        wall = time.perf_counter() - start
    if status != 0:
        raise FailedRunError(f"status {status}: {_last_line(log)}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    files = [path for path in out.rglob("*") if path.is_file()]
    linked = {path.stat().st_ino for path in base.rglob("*") if path.is_file()}
    return Run(
        wall=wall,
        processor=after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        anonymous=memory.anonymous,
        total=memory.total,
        output_bytes=sum(file.stat().st_size for file in files),
        new_bytes=sum(file.stat().st_size for file in files if file.stat().st_ino not in linked),
    )


def clear(out: Path) -> None:
    """Remove a result, and let the disk finish: what is left to write must not fall into the next run."""
    if out.exists():
        shutil.rmtree(out)
    os.sync()


def read_through(folder: Path) -> None:
    """Bring all files of a folder into the page cache, as far as they fit."""
    block = bytearray(_BLOCK_BYTES)
    for path in _files(folder):
        with path.open("rb", buffering=0) as file:
            while file.readinto(block):
                pass


def empty_cache(folder: Path) -> str:
    """Make the next reader of a folder go to the disk.

    Returns:
        How: for the whole machine where the system lets us, so that programs start cold as well, else for these files.
    """
    os.sync()  # a page that is not yet written stays
    if os.access(DROP_CACHES, os.W_OK):
        DROP_CACHES.write_text(_EVERYTHING, encoding="ascii")
        return f"{DROP_CACHES}, all files of the machine"
    for path in _files(folder):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return "posix_fadvise, the files of the base"


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _tree(folder: Path) -> list[str]:
    return [str(folder), *(str(path) for path in sorted(folder.rglob("*")))]


def _environment() -> dict[str, str]:
    """Ours, but that each program has all cores, and none looks for a hub: a refused connection takes seconds."""
    kept = {name: value for name, value in os.environ.items() if name not in _BOUNDS_OF_THREADS}
    return {**kept, "HF_HUB_OFFLINE": "1"}


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][-_SHOWN:] if lines else "it printed nothing"
