"""Under which circumstances figures were measured: they belong to every table."""

from __future__ import annotations

import os
import platform
import shlex
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from alignez_bake.report.record import tool_name

_CPU_INFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Circumstances:
    """What a reader needs to repeat a run.

    Attributes:
        command: that gave the figures.
        processor: its model name.
        cores: that the process may use.
        threads: that torch used.
        versions: of what computes.
    """

    command: str
    processor: str
    cores: int
    threads: int
    versions: str

    def lines(self) -> list[str]:
        """As Markdown, for under a table."""
        return [
            f"    {self.command}",
            "",
            f"{self.processor}, {self.cores} cores, {self.threads} thread(s); {self.versions}.",
        ]


def circumstances(module: str, arguments: list[str]) -> Circumstances:
    """Those of this process.

    Args:
        module: that is being run, such as `benchmarks.speed`.
        arguments: of its command line.
    """
    return Circumstances(
        command=shlex.join(["python", "-m", module, *arguments]),
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)),
        threads=torch.get_num_threads(),
        versions=f"{tool_name()}, torch {torch.__version__}, transformers {transformers.__version__}",
    )


def load_average() -> float:
    """Processes that wanted to run, over the last minute: above the number of cores, timings are worth little."""
    return os.getloadavg()[0]


def _processor() -> str:
    if _CPU_INFO.is_file():
        for line in _CPU_INFO.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
