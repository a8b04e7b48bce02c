"""One folder for another, whole or not at all."""

from __future__ import annotations

import ctypes
import errno
import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Of linux/fs.h and fcntl.h.
_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2
# What kernels and file systems say that cannot exchange.
_CANNOT_EXCHANGE: Final = frozenset({errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTTY})


def aside(folder: Path) -> Path:
    """Where a folder waits while another takes its name, on file systems that cannot exchange two."""
    return folder.with_name(f".{folder.name}.before")


def swap_folders(new: Path, old: Path) -> Path:
    """Give `new` the name of `old`, in one step where the file system can exchange two names.

    Elsewhere it takes two renames. Killed between them, `old` lies at `aside(old)`, and `put_back` undoes it.

    Args:
        new: a folder beside `old`, all of it written.
        old: the folder whose name it takes.

    Returns:
        Where the old folder lies now.

    Raises:
        OSError: the folders cannot be renamed; then both have their names.
    """
    for folder in (new, *_folders_in(new)):
        sync_folder(folder)
    if _exchanged(new, old):
        sync_folder(old.parent)
        return new
    old.rename(aside(old))
    sync_folder(old.parent)
    try:
        new.rename(old)
    except OSError:
        aside(old).rename(old)
        raise
    sync_folder(old.parent)
    return aside(old)


def put_back(folder: Path) -> None:
    """Undo a swap that was killed between its two renames; nothing where there was none.

    Raises:
        OSError: it cannot be renamed.
    """
    if not os.path.lexists(folder) and aside(folder).is_dir():
        aside(folder).rename(folder)
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder last."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _folders_in(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_dir() and not path.is_symlink())


def _exchanged(one: Path, other: Path) -> bool:
    """Whether the two names were exchanged; False where that is not to be had here."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    arguments = (_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), ctypes.c_uint(_RENAME_EXCHANGE))
    if renameat2(*arguments) == 0:
        return True
    code = ctypes.get_errno()
    if code in _CANNOT_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(one), None, str(other))
