"""How many threads may work at once, and BLAS kept to one thread within each of them."""

from __future__ import annotations

import math
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np  # noqa: F401  # a library can be limited once it is loaded: this loads numpy's BLAS
from threadpoolctl import threadpool_limits

from alignez_bake.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_VARIABLE: Final = "OMP_NUM_THREADS"
# A worker's leaves and blocks take some 15 MB, so a bake stays below 250 MB on a machine of any number of cores.
MOST_WORKERS: Final = 12


def worker_count() -> int:
    """Number of threads that may compute at the same time, at least 1.

    The least of: the cores that the process may be scheduled on, the processor time that its control groups grant
    it (rounded up to whole cores), OMP_NUM_THREADS, where it is set, and `MOST_WORKERS`. A container that is given two
    cores of 64 gets two workers: more would only wait for each other, and each holds blocks in memory.

    Raises:
        BadInputError: OMP_NUM_THREADS is no positive number.
    """
    limits = [_cores(), _control_group_limit(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")), _asked(os.environ)]
    return min(MOST_WORKERS, *(limit for limit in limits if limit is not None))


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Within the context numpy's matrix products use one thread each.

    Workers that run such products side by side would otherwise wait for one pool of threads, or start one each.
    How a library shares a product out among threads can change its last bits; with one thread they no longer depend
    on the number of cores. The limit holds for the whole process until the context ends, so enter it once around
    all workers, not in each of them.
    """
    with threadpool_limits(limits=1, user_api="blas"):
        yield


def _cores() -> int:
    """Cores that the process may run on: fewer than the machine has where taskset or a cpuset says so."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS, nor on Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _asked(environment: Mapping[str, str]) -> int | None:
    """What OMP_NUM_THREADS asks for; None where it is unset or empty.

    OpenMP allows a list, one number for each level of nested regions: `4,2`. Workers are the outermost level.
    """
    text = environment.get(_VARIABLE, "").strip()
    if not text:
        return None
    first = text.split(",")[0].strip()
    if not (first.isascii() and first.isdigit() and int(first) >= 1):
        raise BadInputError(f"{_VARIABLE} is {text!r}: it must be a whole number of at least 1; set it so or unset it")
    return int(first)


def _control_group_limit(membership: Path, mount: Path) -> int | None:
    """Whole cores that the quotas of control groups leave, rounded up; None where there is no quota.

    Version 2 only: `cpu.max` holds "QUOTA PERIOD" in microseconds, or "max PERIOD" for none. A group is bound by
    the quotas of all groups above it too, so the path is walked up to the mount. The root of the hierarchy has no
    such file, nor has any group without the cpu controller: that is no limit.

    Args:
        membership: /proc/self/cgroup, whose line `0::/PATH` names the group of version 2.
        mount: where the hierarchy of version 2 is mounted.
    """
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:  # not Linux
        return None
    paths = [line.removeprefix("0::") for line in lines if line.startswith("0::")]
    if not paths:
        return None
    parts = [part for part in paths[0].split("/") if part]
    if ".." in parts:  # the group lies outside of what this process is shown: the mount's root is all it can read
        parts = []
    limits = []
    for depth in range(len(parts) + 1):
        try:
            quota, period = mount.joinpath(*parts[:depth], "cpu.max").read_text(encoding="utf-8").split()
        except FileNotFoundError:
            continue
        if quota != "max":
            limits.append(max(1, math.ceil(int(quota) / int(period))))
    return min(limits, default=None)
