"""Two folders change names: at once, or in two steps that can be undone."""

from __future__ import annotations

import errno

import pytest

from alignez_bake.integrity import swap
from alignez_bake.integrity.swap import aside, put_back, swap_folders


@pytest.fixture
def pair(tmp_path):
    """A new and an old folder, each with a file of its name."""
    for name in ("new", "old"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / "who").write_text(name)
    return tmp_path / "new", tmp_path / "old"


def who(folder):
    """Whose folder it was."""
    return (folder / "sub" / "who").read_text()


def test_they_are_exchanged_in_one_step(pair):
    new, old = pair
    assert swap_folders(new, old) == new
    assert (who(old), who(new)) == ("new", "old")


def test_where_that_cannot_be_it_takes_two(pair, monkeypatch):
    new, old = pair
    monkeypatch.setattr(swap, "_exchanged", lambda _new, _old: False)
    assert swap_folders(new, old) == aside(old)
    assert (who(old), who(aside(old))) == ("new", "old")
    assert not new.exists()


def test_where_the_second_of_two_fails_the_first_is_undone(pair, monkeypatch):
    new, old = pair
    monkeypatch.setattr(swap, "_exchanged", lambda _new, _old: False)
    rename = type(new).rename

    def fails(path, target):
        if path == new:
            raise OSError(errno.EBUSY, "Device or resource busy")
        return rename(path, target)

    monkeypatch.setattr(type(new), "rename", fails)
    with pytest.raises(OSError, match="busy"):
        swap_folders(new, old)
    assert (who(old), who(new)) == ("old", "new")


def test_killed_between_the_two_it_is_put_back(pair, monkeypatch):
    new, old = pair
    monkeypatch.setattr(swap, "_exchanged", lambda _new, _old: False)
    old.rename(aside(old))
    put_back(old)
    assert who(old) == "old"
    # Where nothing was interrupted, nothing happens.
    put_back(old)
    assert (who(old), who(new)) == ("old", "new")


def test_a_file_system_that_cannot_is_told_from_one_that_fails(pair, monkeypatch, tmp_path):
    new, old = pair
    with pytest.raises(FileNotFoundError):
        swap._exchanged(new, tmp_path / "absent")

    class Old:
        """A C library of before 2018."""

    monkeypatch.setattr(swap.ctypes, "CDLL", lambda *_a, **_k: Old())
    assert swap._exchanged(new, old) is False

    class Refuses:
        """A file system that has no exchange."""

        @staticmethod
        def renameat2(*_arguments):
            swap.ctypes.set_errno(errno.EINVAL)
            return -1

    monkeypatch.setattr(swap.ctypes, "CDLL", lambda *_a, **_k: Refuses())
    assert swap._exchanged(new, old) is False
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old"]
    assert (who(new), who(old)) == ("new", "old")
