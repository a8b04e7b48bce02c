"""A result folder that appears whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from contextlib import contextmanager, suppress
from stat import S_ISREG
from typing import TYPE_CHECKING, Any

from alignez_bake.errors import BadInputError
from alignez_bake.streaming.journal import JOURNAL_FILE, begin_journal, check_same, files_to_keep, journal_lines

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from pathlib import Path

OURS = "alignez"
"""The one subfolder of a result that holds all that is ours."""
_STAGING = (".", ".partial")
_BLOCK = 512  # bytes that `st_blocks` counts in


def check_output(out: Path, base: Path) -> None:
    """Refuse a place where a result must not be written. Called before any long work.

    Raises:
        BadInputError: `out` is not empty, is a file, is the base, lies inside it or around it, or a folder beside it
            that a run replaces (`OUT.failed`) is the base or not ours.
    """
    if out.name in ("", ".."):
        raise BadInputError(f"--out {out} does not name a folder: give it a name, such as {out / 'aligned'}")
    real_out, real_base = out.resolve(), base.resolve()
    if real_out == real_base:
        raise BadInputError(f"--out {out} is the base model itself: choose another folder")
    if real_out.is_relative_to(real_base):
        raise BadInputError(f"--out {out} lies inside the base model {base}: choose a folder outside of it")
    if real_base.is_relative_to(real_out):
        raise BadInputError(f"--out {out} contains the base model {base}: choose another folder")
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise BadInputError(f"--out {out} exists and is no folder: choose another name")
    if out.is_dir() and any(out.iterdir()):
        raise BadInputError(f"--out {out} exists and is not empty: choose another folder, or remove it first")
    for beside in (staging_path(out), failed_path(out)):
        if real_base.is_relative_to(beside.resolve()):
            raise BadInputError(f"--out {out} would clear {beside}, which holds the base model: choose another name")
    failed = failed_path(out)
    if os.path.lexists(failed) and (failed.is_symlink() or not (failed / OURS).is_dir()):
        raise BadInputError(
            f"{failed} is in the way: a result whose certificate fails goes there, and what lies there is none; "
            "move it, or choose another --out"
        )


def staging_path(out: Path) -> Path:
    """Where a result lies while it is being written: beside it, hidden."""
    return out.with_name(f"{_STAGING[0]}{out.name}{_STAGING[1]}")


def scratch_place(out: Path) -> Path | None:
    """Where a check of `out` may make files for a while; None: in the system's place for temporary files.

    A folder that is being written takes them itself: there is room beside its own files, and what a killed run leaves
    goes with it. A finished result may lie where nothing can be written, and nothing should.
    """
    staged = out.name.startswith(_STAGING[0]) and out.name.endswith(_STAGING[1])
    return out if staged else None


def failed_path(out: Path) -> Path:
    """Where a result lies whose certificate failed: `OUT.failed`."""
    return out.with_name(f"{out.name}.failed")


def check_space(out: Path, needed: int) -> None:
    """Refuse to begin what does not fit.

    Args:
        out: the result folder, which need not exist.
        needed: bytes, of which those count as written that a killed run left.

    Raises:
        BadInputError: the file system of `out` has less space left.
    """
    left = staging_path(out)
    if (left / OURS / JOURNAL_FILE).is_file():
        states = [path.lstat() for path in left.iterdir()]
        # What is linked to the base is not among what is needed.
        needed -= sum(state.st_blocks * _BLOCK for state in states if S_ISREG(state.st_mode) and state.st_nlink == 1)
    place = out.resolve()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise BadInputError(f"no space left for {out}: {needed / 1e6:.1f} MB are needed, {free / 1e6:.1f} MB are free")


@contextmanager
def parents_made(out: Path) -> Iterator[None]:
    """The folders above `out`; those that were made for it and are empty at the end go again.

    Raises:
        BadInputError: one cannot be made.
    """
    missing = [folder for folder in out.parents if not folder.exists()]  # the deepest first
    try:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInputError(f"--out {out} cannot be written: {error.strerror}") from error
        yield
    finally:
        for folder in missing:
            with suppress(OSError):  # not empty: something was written after all
                folder.rmdir()


@contextmanager
def staged_output(out: Path, made: Mapping[str, Any] | None = None) -> Iterator[Path]:
    """A temporary sibling of `out` to write into; `publish` moves it into place, an error removes it.

    A lock on the folder itself keeps a second run out, and dies with its process. What a killed run left is cleared,
    unless it has a journal: then the same bake goes on with it, and another is refused.

    Args:
        out: the result folder.
        made: what is being made, of `bake_key`, where a run can go on with what a killed one left; its journal is
            begun with it.

    Raises:
        BadInputError: another run is writing to `out`, an unfinished result of another bake is in the way, the place
            cannot be written, the disk is full, or a file grows larger than may be.
    """
    with parents_made(out), _locked_folder(staging_path(out), out, made) as staging:
        yield staging


@contextmanager
def _locked_folder(staging: Path, out: Path, made: Mapping[str, Any] | None) -> Iterator[Path]:
    try:
        staging.mkdir(exist_ok=True)
        descriptor = os.open(staging, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise BadInputError(f"--out {out} cannot be written: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadInputError(f"another run is writing to {out}: wait for it, or choose another folder") from None
        # Between opening and locking, the run that held the lock may have published the folder.
        if not _lies_at(descriptor, staging):
            raise BadInputError(f"another run has just written {out}: look at it, or choose another folder")
        journal = staging / OURS / JOURNAL_FILE
        if lines := journal_lines(journal):
            # Hours of work may lie there: not even a run that cannot use them clears them unasked.
            check_same(journal, lines[0], made or {})
            kept = files_to_keep(journal, lines)
            # What the weights came with, and what was checked of them, is made anew: nothing says that it is whole.
            _clear(staging / OURS, {JOURNAL_FILE})
            _clear(staging, {OURS, *kept})
        else:
            _clear(staging)
        try:
            if made is not None and not lines:
                journal.parent.mkdir()
                begin_journal(journal, made)
            yield staging
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise BadInputError(f"no space left while writing {out}: free some, or choose another disk") from error
            if error.errno == errno.EFBIG:
                raise BadInputError(
                    f"while writing {out}, a file is larger than this file system allows, or than the limit on file "
                    "sizes (`ulimit -f`): raise the limit, or choose another disk"
                ) from error
            raise
        finally:
            # Once it is published, the next run's folder may already have the name.
            if _lies_at(descriptor, staging):
                shutil.rmtree(staging)
    finally:
        os.close(descriptor)


def _lies_at(descriptor: int, path: Path) -> bool:
    """Whether an open folder is the one that has this name now."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False


def publish(staging: Path, out: Path, *, failed: bool) -> Path:
    """Move a finished folder to `out`, or to `OUT.failed` if its checks failed; an older `OUT.failed` goes.

    Returns:
        Where the result lies.
    """
    _sync(staging)
    (staging / OURS / JOURNAL_FILE).unlink(missing_ok=True)
    target = failed_path(out) if failed else out
    if failed and target.exists():
        shutil.rmtree(target)
    staging.rename(target)
    _sync_one(target.parent)
    return target


def _sync(folder: Path) -> None:
    """All of a folder to the disk: after a power cut too, what has the name of a result must be one."""
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            _sync(entry)
        elif entry.is_file():
            _sync_one(entry)
    _sync_one(folder)


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _clear(folder: Path, kept: Collection[str] = ()) -> None:
    for entry in folder.iterdir():
        if entry.name in kept:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
