"""A base's files in a result: the same blocks on the disk where that can be, a copy elsewhere."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from pathlib import Path

Way = Literal["reflinked", "hard-linked", "copied"]

_FICLONE: Final = 0x40049409  # of linux/fs.h
# What a file system says that cannot share blocks, or two of them, or a link that may not be made.
_CANNOT_CLONE: Final = frozenset({errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EPERM})
_KEEP_SIZE: Final = 1  # FALLOC_FL_KEEP_SIZE of linux/falloc.h
_CANNOT_RESERVE: Final = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EPERM})
_CANNOT_LINK: Final = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.EACCES})


def share_file(source: Path, target: Path) -> Way:
    """Make `target` the same as `source` with as little writing as the file system allows.

    A reflink is tried first: it takes no space, and yet is a file of its own. A hard link is the same file under two
    names, so a change in place would be one of both. A copy comes last.

    Args:
        source: a file, or a link to one.
        target: does not exist; its folder does.

    Raises:
        OSError: for other reasons than that the file system cannot, such as a full disk.
    """
    source = source.resolve(strict=True)
    if cloned(source, target):
        return "reflinked"
    if linked(source, target):
        return "hard-linked"
    shutil.copyfile(source, target)
    return "copied"


def linked(source: Path, target: Path) -> bool:
    """Make `target` a hard link to the file `source`, if the file system has such, and say whether it is one.

    Raises:
        OSError: for other reasons than that it cannot.
    """
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _CANNOT_LINK:
            raise
        return False
    return True


def reserve(descriptor: int, size: int) -> None:
    """Set aside the blocks of a file that is about to be written, whose size stays what it is.

    Blocks in a row, found once, are written faster than those that are looked for as they are needed; and a disk that
    is too small says so before the work. File systems that cannot do it are passed over.

    Raises:
        OSError: the disk is full.
    """
    # `os.posix_fallocate` changes the size, and where the file system cannot, writes to every block by itself.
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "fallocate"):
        return
    if libc.fallocate(descriptor, _KEEP_SIZE, ctypes.c_int64(0), ctypes.c_int64(size)) != 0:
        error = ctypes.get_errno()
        if error not in _CANNOT_RESERVE:
            raise OSError(error, os.strerror(error))


def takes_space(source: Path, folder: Path) -> bool:
    """Whether a shared file may be a copy: the two lie on different file systems."""
    return source.resolve(strict=True).stat().st_dev != folder.stat().st_dev


def cloned(source: Path, target: Path) -> bool:
    """Make `target` a reflink of the file `source`, if the file system has such, and say whether it is one.

    Raises:
        OSError: for other reasons than that it cannot.
    """
    with source.open("rb") as read, target.open("xb") as written:
        try:
            fcntl.ioctl(written.fileno(), _FICLONE, read.fileno())
        except OSError as error:
            if error.errno not in _CANNOT_CLONE:
                raise
        else:
            return True
    target.unlink()
    return False
