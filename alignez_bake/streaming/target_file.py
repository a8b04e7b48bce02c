"""A file that is written past the system's cache, where the file system can."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

# What kernels and file systems say that cannot take room for a file.
_CANNOT_RESERVE: Final = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})
_OPEN: Final = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


def own_file(path: Path) -> int:
    """A file to write into, open; what lies there is kept, unless it is a file of another name too.

    A killed run with hard links may have left one to the base's file: what is written there is written to the base.
    """
    if os.path.lexists(path) and (path.is_symlink() or not path.is_file() or path.stat().st_nlink > 1):
        path.unlink()
    return os.open(path, _OPEN, 0o666)


def reserve(descriptor: int, size: int) -> None:
    """Take the room of a file of `size` bytes at once, where the file system can.

    Writes beyond a file's end wait for each other, those within it go side by side; and a disk that is too small says
    so at the beginning. `os.posix_fallocate` would write to every block where the file system cannot.

    Raises:
        OSError: there is not so much room.
    """
    fallocate = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)
    if fallocate is None or not size:  # not on macOS
        return
    while fallocate(descriptor, 0, ctypes.c_int64(0), ctypes.c_int64(size)) != 0:
        code = ctypes.get_errno()
        if code in _CANNOT_RESERVE:
            return
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))


def pass_by_cache(descriptor: int) -> None:
    """Write without the system's cache, where the file system can."""
    if not hasattr(os, "O_DIRECT"):  # not on macOS
        return
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | os.O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise


def write_all(descriptor: int, data: memoryview, offset: int) -> None:
    """Write at a place, whatever the system takes at once."""
    while data:
        try:
            count = os.pwrite(descriptor, data, offset)
        except OSError as error:
            # A disk with larger blocks, or a file system that says so only now.
            if error.errno != errno.EINVAL or not _through_cache(descriptor):
                raise
            continue
        data, offset = data[count:], offset + count


def _through_cache(descriptor: int) -> bool:
    """Write through the system's cache from now on; False: so it was already."""
    flags, direct = fcntl.fcntl(descriptor, fcntl.F_GETFL), getattr(os, "O_DIRECT", 0)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags & ~direct)
    return bool(flags & direct)
