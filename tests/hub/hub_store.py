"""What a hub keeps: repositories with branches and commits, files by their hash, and who may do what."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_LFS_SUFFIXES = (".safetensors", ".gguf", ".onnx", ".bin", ".pt")


class Account(NamedTuple):
    """Whose a token is, and whether it may write."""

    user: str
    can_write: bool


class StoredFile(NamedTuple):
    """A file of a commit: its git blob id, its sha256 if it is kept as LFS, and its size in bytes."""

    blob_id: str
    sha256: str
    size: int
    is_lfs: bool

    @property
    def etag(self) -> str:
        """As the hub gives it: of the content, so that two files never share one."""
        return self.sha256 if self.is_lfs else self.blob_id


class HubError(Exception):
    """An answer other than 200, with the headers that the hub's client reads."""

    def __init__(self, status: int, code: str | None, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


@dataclass
class Repository:
    """One model repository; every commit holds its whole tree."""

    private: bool = False
    gated: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, StoredFile]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: Mapping[str, StoredFile], message: str) -> str:
        """Add a commit to a branch and return its hash."""
        parent = self.branches.get(branch, "")
        text = f"{parent} {len(self.commits)} {sorted(files.items())} {message}"
        oid = hashlib.sha1(text.encode()).hexdigest()
        self.commits[oid] = dict(files)
        self.branches[branch] = oid
        self.messages.append(message)
        return oid

    def resolve(self, revision: str) -> str:
        """The commit that a branch or a hash names."""
        oid = self.branches.get(revision, revision)
        if oid not in self.commits:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return oid


class HubStore:
    """All repositories; contents lie in `folder`, one file for each sha256."""

    def __init__(self, folder: Path, accounts: Mapping[str, Account]) -> None:
        self.folder = folder
        self.accounts = dict(accounts)
        self.repositories: dict[str, Repository] = {}
        self.lock = threading.RLock()

    # --- rights ---------------------------------------------------------------------------------------------

    def account(self, token: str | None) -> Account | None:
        """Whose a token is; None without one."""
        if token is None:
            return None
        if token not in self.accounts:
            raise HubError(401, None, "Invalid credentials in Authorization header")
        return self.accounts[token]

    def readable(self, name: str, account: Account | None) -> Repository:
        """A repository, if it is there and this account may see it."""
        repository = self.repositories.get(name)
        own = account is not None and name.split("/", maxsplit=1)[0] == account.user
        if repository is None or (repository.private and not own):
            # As the hub does it: without a token nobody learns whether a repository exists.
            raise HubError(404 if account else 401, "RepoNotFound", "Repository not found")
        if repository.gated and not own:
            raise HubError(403 if account else 401, "GatedRepo", "Access to this model is restricted")
        return repository

    def check_writer(self, name: str, account: Account | None) -> None:
        """Refuse who may not write to this name."""
        if account is None:
            raise HubError(401, None, "Invalid username or password.")
        if not account.can_write or name.split("/", maxsplit=1)[0] != account.user:
            raise HubError(403, None, f"You don't have the rights to write to {name}")

    # --- contents -------------------------------------------------------------------------------------------

    def create(self, name: str, *, private: bool = False, gated: bool = False) -> Repository:
        """A new repository with a first commit, as the hub makes it."""
        repository = Repository(private=private, gated=gated)
        self.repositories[name] = repository
        repository.commit("main", {".gitattributes": self.keep(b"*.safetensors filter=lfs\n", False)}, "initial commit")
        return repository

    def add(self, name: str, files: Mapping[str, bytes], *, branch: str = "main", **rights: bool) -> str:
        """Put files into a repository, made if it is not there; returns the commit."""
        with self.lock:
            repository = self.repositories.get(name) or self.create(name, **rights)
            tree = repository.commits[repository.branches.get(branch, repository.branches["main"])]
            kept = {path: self.keep(data, self.goes_to_lfs(path)) for path, data in files.items()}
            return repository.commit(branch, {**tree, **kept}, "added by a test")

    def keep(self, data: bytes, is_lfs: bool) -> StoredFile:
        """Store content."""
        sha256 = hashlib.sha256(data).hexdigest()
        self.path(sha256).write_bytes(data)
        blob_id = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        return StoredFile(blob_id, sha256, len(data), is_lfs)

    def path(self, sha256: str) -> Path:
        """Where content lies."""
        return self.folder / sha256

    @staticmethod
    def goes_to_lfs(path: str) -> bool:
        """Whether the hub keeps a file of this name as LFS."""
        return path.endswith(_LFS_SUFFIXES)
