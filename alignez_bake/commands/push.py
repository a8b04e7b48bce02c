"""`push`: a result folder to the hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignez_bake.hub.upload import Upload, local_names, push_folder


@dataclass(frozen=True)
class PushResult:
    """What was sent, or with `dry_run` would be.

    Attributes:
        path: the result folder.
        upload: repository, files and sizes.
        dry_run: whether nothing was sent.
        notes: one line for each place of this machine that the files name.
    """

    path: Path
    upload: Upload
    dry_run: bool
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values."""
        return {"out": str(self.path), "dry_run": self.dry_run, **self.upload.to_json(), "notes": list(self.notes)}


def push(
    out: str | Path,
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    dry_run: bool = False,
) -> PushResult:
    """Upload a result folder to a model repository of the hub.

    The certificate is taken as it was recorded; whoever changes a result afterwards changes what it says, and `verify`
    measures again.

    Args:
        out: the result folder.
        repo: `user/repo`; made if it is not there.
        private: whether a new repository is private.
        revision: branch to push to; made if it is not there; the repository's default branch unless given.
        dry_run: list what would be sent; no connection is opened.

    Raises:
        BadInputError: no result, a result that did not pass its certificate, an invalid name, or what the hub
            refuses; as `hub.upload.push_folder`.
    """
    path = Path(out)
    notes = local_names(path)
    upload = push_folder(path, repo, private=private, revision=revision, dry_run=dry_run)
    return PushResult(path, upload, dry_run, notes)
