"""The most memory that this process held: resident pages, those of mapped files included. Linux alone.

The standard library is all that is needed here: it runs in environments that have nothing else of ours.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

_STATUS: Final = Path("/proc/self/status")
_CLEAR: Final = Path("/proc/self/clear_refs")
_FORGET_THE_PEAK: Final = "5"


def reset_peak() -> int:
    """Forget the peak so far, such as that of imports.

    Returns:
        Bytes that are resident now.

    Raises:
        OSError: a system that keeps no such peak.
    """
    _CLEAR.write_text(_FORGET_THE_PEAK, encoding="ascii")
    return _bytes("VmRSS")


def peak() -> int:
    """Most bytes that were resident at once since `reset_peak`."""
    return _bytes("VmHWM")


def _bytes(entry: str) -> int:
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == entry:
            return int(value.split()[0]) * 1024
    raise OSError(f"{_STATUS} has no {entry}")
