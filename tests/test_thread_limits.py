"""Workers follow what the process is given; BLAS is held to one thread and let go again."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from alignez_bake import thread_limits
from alignez_bake.errors import BadInputError
from alignez_bake.thread_limits import one_blas_thread, worker_count

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def eight_cores(monkeypatch):
    """A process that may use eight cores and has no other limit."""
    monkeypatch.setattr(thread_limits, "_cores", lambda: 8)
    monkeypatch.setattr(thread_limits, "_control_group_limit", lambda membership, mount: None)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def test_cores_alone(eight_cores):
    assert worker_count() == 8


@pytest.mark.parametrize(("text", "count"), [("3", 3), ("3,2", 3), (" 1 ", 1), ("64", 8), ("", 8)])
def test_the_environment_can_only_lower_it(eight_cores, monkeypatch, text, count):
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert worker_count() == count


def test_memory_bounds_it_on_a_large_machine(eight_cores, monkeypatch):
    monkeypatch.setattr(thread_limits, "_cores", lambda: 192)
    assert worker_count() == thread_limits.MOST_WORKERS
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    assert worker_count() == thread_limits.MOST_WORKERS


@pytest.mark.parametrize("text", ["0", "-2", "two", "1.5", "²", ",2"])
def test_a_value_that_is_no_number_is_refused(eight_cores, monkeypatch, text):
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    with pytest.raises(BadInputError, match="OMP_NUM_THREADS is"):
        worker_count()


def test_a_quota_lowers_it(eight_cores, monkeypatch):
    monkeypatch.setattr(thread_limits, "_control_group_limit", lambda membership, mount: 2)
    assert worker_count() == 2


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux binds processes to cores so")
def test_a_process_bound_to_one_core_has_one_worker():
    core = min(os.sched_getaffinity(0))
    code = (
        f"import os; os.sched_setaffinity(0, {{{core}}})\n"
        "from alignez_bake.thread_limits import worker_count; print(worker_count())"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


def groups(folder: Path, membership: str, quotas: dict[str, str]) -> int | None:
    (folder / "cgroup").write_text(membership)
    for group, text in quotas.items():
        place = folder / "mount" / group
        place.mkdir(parents=True, exist_ok=True)
        (place / "cpu.max").write_text(text)
    return thread_limits._control_group_limit(folder / "cgroup", folder / "mount")


@pytest.mark.parametrize(
    ("membership", "quotas", "limit"),
    [
        ("0::/\n", {"": "150000 100000\n"}, 2),
        ("0::/\n", {"": "20000 100000\n"}, 1),
        ("0::/\n", {"": "max 100000\n"}, None),
        ("0::/a/b\n", {"a": "400000 100000\n", "a/b": "max 100000\n"}, 4),
        ("0::/a/b\n", {"a": "400000 100000\n", "a/b": "300000 100000\n"}, 3),
        ("0::/a/b\n", {"a": "100000 50000\n", "a/b": "300000 100000\n"}, 2),
        ("0::/a\n", {"other": "100000 100000\n"}, None),
        ("0::/../x\n", {"": "200000 100000\n", "x": "100000 100000\n"}, 2),
        ("4:memory:/a\n1:cpu:/a\n", {"a": "100000 100000\n"}, None),
    ],
    ids=["rounded up", "less than a core", "no quota", "of the parent", "own is least", "parent is least",
         "of another group", "outside of the view", "version 1"],
)  # fmt: skip
def test_quotas_of_control_groups(tmp_path, membership, quotas, limit):
    assert groups(tmp_path, membership, quotas) == limit


def test_without_control_groups_there_is_no_quota(tmp_path):
    assert thread_limits._control_group_limit(tmp_path / "absent", tmp_path) is None


def blas_threads() -> set[int]:
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


def test_blas_is_held_to_one_thread_and_let_go_also_after_an_error():
    np.ones((2, 2)) @ np.ones((2, 2))
    with threadpool_limits(limits=2, user_api="blas"):
        if blas_threads() != {2}:
            pytest.skip("numpy's BLAS cannot be set to two threads here")
        with one_blas_thread():
            assert blas_threads() == {1}
        assert blas_threads() == {2}
        with pytest.raises(RuntimeError), one_blas_thread():
            raise RuntimeError
        assert blas_threads() == {2}
