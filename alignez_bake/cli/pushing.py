"""`--push` behind a command that writes a result: only what is verified leaves this machine."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any, Protocol

from alignez_bake.cli.shell import show
from alignez_bake.errors import AlignezBakeError, BadInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from rich.table import Table

    from alignez_bake.commands.push import PushResult


class Written(Protocol):
    """A result with a certificate, as commands return it."""

    def result_path(self) -> Path:
        """Where it lies."""
        ...

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values."""
        ...

    def raise_if_failed(self) -> None:
        """Raise unless its certificate passed."""
        ...


class _Pushed:
    """A result and its upload, as one JSON document."""

    def __init__(self, result: Written, upload: dict[str, Any]) -> None:
        self._result, self._upload = result, upload

    def to_json(self) -> dict[str, Any]:
        return {**self._result.to_json(), "push": self._upload}


def check_push(repo: str | None) -> None:
    """Refuse a name that no repository can have, before the long work.

    Raises:
        BadInputError: the name is not USER/REPO.
    """
    if repo is not None:
        from alignez_bake.hub.repo_id import parse_repo_id  # noqa: PLC0415 - not needed without --push

        parse_repo_id(repo)


def show_and_push(
    result: Written,
    repo: str | None,
    *,
    as_json: bool,
    tables: Callable[[], Sequence[Table | str]],
    dry_run: bool,
) -> None:
    """Upload a verified result if that is asked for, and show both.

    Raises:
        CheckFailedError: the certificate did not pass; nothing was uploaded.
        BadInputError: what the hub refuses; the result stays where it is, and the message says how it is pushed from
            there.
    """
    if repo is None or dry_run:
        show(result, as_json=as_json, tables=tables)
        if not dry_run:
            result.raise_if_failed()
        return
    try:
        result.raise_if_failed()
        pushed = _push(result.result_path(), repo)
    except AlignezBakeError:
        # What was written is there, whatever became of the upload.
        show(result, as_json=as_json, tables=tables)
        raise
    uploaded = [*tables(), *noted(pushed), f"Pushed to {pushed.upload.url}."]
    show(_Pushed(result, pushed.to_json()), as_json=as_json, tables=lambda: uploaded)


def noted(pushed: PushResult) -> list[str]:
    """The notes of an upload, as lines below a table."""
    return [f"Note: {note}." for note in pushed.notes]


def _push(path: Path, repo: str) -> PushResult:
    from alignez_bake.commands.push import push  # noqa: PLC0415 - not needed without --push

    try:
        return push(path, repo)
    except BadInputError as error:
        again = shlex.join(["alignez-bake", "push", str(path), repo])
        raise BadInputError(f"{error}; the result is complete in {path}: `{again}` sends it") from error
