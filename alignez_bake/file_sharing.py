"""A base's files in a result: the same blocks on the disk where that can be, a copy elsewhere."""

from __future__ import annotations

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
