"""Names of the hub: `user/repo`, with `@revision` where one is meant."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from alignez_bake.errors import BadInputError
from alignez_bake.safetensors_io.strict_json import shown

# The hub's own rules (docs of huggingface_hub, `validate_repo_id`), which its client checks too; known here so that
# nothing has to be imported, let alone asked, to tell a name from a path.
_NAME: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?")
_MAX_LENGTH: Final = 96
# git's rules for the names of refs (`git check-ref-format`), as far as they concern a branch, tag or commit.
_REVISION: Final = re.compile(r"[^\x00-\x20\x7f~^:?*\[\\]{1,255}")


class RepoId(NamedTuple):
    """A repository of the hub, and which of its revisions; None: its default branch."""

    repo: str
    revision: str | None = None

    def __str__(self) -> str:
        """As it is typed: `user/repo` or `user/repo@revision`."""
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"


def parse_repo_id(text: str) -> RepoId:
    """Take `user/repo[@revision]` apart.

    Raises:
        BadInputError: not of that form, or a name that the hub does not allow; the message gives the rule.
    """
    repo, at, revision = text.partition("@")
    problem = _repo_problem(repo) or (_revision_problem(revision) if at else None)
    if problem is not None:
        raise BadInputError(f"{shown(text)} is no name of a repository: {problem}")
    return RepoId(repo, revision if at else None)


def looks_like_repo_id(text: str) -> bool:
    """Whether a text has the form `user/repo[@revision]`; nobody is asked whether there is such a repository."""
    repo, at, revision = text.partition("@")
    return _repo_problem(repo) is None and not (at and _revision_problem(revision))


def check_revision(revision: str) -> None:
    """Refuse a revision that git would not allow.

    Raises:
        BadInputError: the message gives the rule.
    """
    problem = _revision_problem(revision)
    if problem is not None:
        raise BadInputError(f"revision {shown(revision)}: {problem}")


def _repo_problem(repo: str) -> str | None:
    user, slash, name = repo.partition("/")
    if not slash or not user or not name or "/" in name:
        return "it must be user/repo, or user/repo@revision"
    if not (_NAME.fullmatch(user) and _NAME.fullmatch(name)) or len(repo) > _MAX_LENGTH:
        return (
            "user and repo are letters, digits, '-', '_' and '.', neither first nor last a '-' or '.', and at most "
            f"{_MAX_LENGTH} characters together"
        )
    if "--" in repo or ".." in repo or repo.endswith(".git"):
        return "the hub allows neither '--' nor '..' in it, nor '.git' at its end"
    return None


def _revision_problem(revision: str) -> str | None:
    if (
        not _REVISION.fullmatch(revision)
        or ".." in revision
        or "//" in revision
        or revision.startswith(("-", "/", "."))
        or revision.endswith(("/", ".", ".lock"))
    ):
        return "a revision is a branch, a tag or a commit, as git allows their names"
    return None
