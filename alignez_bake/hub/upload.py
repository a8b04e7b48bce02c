"""A result folder to the hub: what goes, what never goes, and what is refused before anything is sent.

`upload_folder` is used at every size; docs/decisions/hub.md says why not `upload_large_folder`.
"""

from __future__ import annotations

import glob
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from alignez_bake.errors import BadInputError
from alignez_bake.exporters.output_folder import OURS
from alignez_bake.exporters.peft_files import BASE_NAME_KEY as ADAPTER_BASE
from alignez_bake.exporters.peft_files import CONFIG_FILE as ADAPTER_CONFIG
from alignez_bake.hub.download import hub_name
from alignez_bake.hub.errors import hub_errors
from alignez_bake.hub.repo_id import RepoId, check_revision, parse_repo_id
from alignez_bake.report.record import RECORD_FILE, read_certificate, read_record, tool_name
from alignez_bake.safetensors_io.folder_layout import check_inside
from alignez_bake.safetensors_io.strict_json import parse_object, shown

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_LOCK_SUFFIX: Final = ".lock"
_FAILED_SUFFIX: Final = ".failed"


@dataclass(frozen=True)
class Upload:
    """What was sent, or in a dry run would be.

    Attributes:
        repo: `user/repo`.
        revision: the branch; None: the default one.
        url: of the repository's page; None after a dry run, which asks nobody.
        commit: hash of the new commit, or of the one that was there if nothing had changed; None after a dry run.
        files: name in the repository and size in bytes, in order of name.
    """

    repo: str
    revision: str | None
    url: str | None
    commit: str | None
    files: tuple[tuple[str, int], ...]

    @property
    def total_bytes(self) -> int:
        """Of all files; files that the hub has already are counted, but not sent again."""
        return sum(size for _, size in self.files)

    def to_json(self) -> dict[str, Any]:
        """The upload as JSON values."""
        return {
            "repo": self.repo,
            "revision": self.revision,
            "url": self.url,
            "commit": self.commit,
            "files": [{"name": name, "bytes": size} for name, size in self.files],
            "total_bytes": self.total_bytes,
        }


def push_folder(
    folder: Path,
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    dry_run: bool = False,
) -> Upload:
    """Upload a result to a model repository, which is made if it is not there.

    The recorded certificate is trusted: nothing is measured here.

    Args:
        folder: a result of this tool.
        repo: `user/repo` or `user/repo@branch`.
        private: whether a new repository is private; unless given, what the account's settings say.
        revision: branch to push to, made if it is not there; another way to say `@branch`.
        dry_run: list the files; no connection is opened.

    Raises:
        BadInputError: no result, a result that did not pass, an invalid name, a link that leaves the folder, a
            public repository where a private one is asked for, or what the hub refuses; see `hub_errors`.
    """
    target = _target(repo, revision)
    _check_passed(folder)
    files = tuple((name, (folder / name).stat().st_size) for name in _names(folder))
    if dry_run:
        return Upload(target.repo, target.revision, None, None, files)
    return _send(folder, target, files, private=private)


def local_names(folder: Path) -> tuple[str, ...]:
    """What a result says of places on this machine, one line each: of no use to others, and they all can read it.

    Raises:
        BadInputError: no result, or an adapter_config.json that cannot be read.
    """
    base = read_record(folder).get("base")
    place = base if isinstance(base, dict) else {}
    notes = []
    if isinstance(place.get("path"), str):
        notes.append(
            f"{OURS}/{RECORD_FILE} names the base by a path on this machine, {shown(place['path'])}: others name the "
            "base themselves when they verify"
        )
    adapter = folder / ADAPTER_CONFIG
    if adapter.is_file():
        name = parse_object(adapter.read_bytes(), str(adapter)).get(ADAPTER_BASE)
        is_hub_id = isinstance(name, str) and (name == place.get("repo") or hub_name(name) is not None)
        if not is_hub_id:
            notes.append(
                f"{ADAPTER_CONFIG} names the base {shown(name)}, which is no USER/REPO of the hub but a place on this "
                f"machine: PEFT finds no base there elsewhere; set {ADAPTER_BASE}, or bake with --model USER/REPO"
            )
    return tuple(notes)


def _check_passed(folder: Path) -> None:
    """Refuse what is no result, or one that did not pass its certificate."""
    read_record(folder)
    verdict = read_certificate(folder).get("verdict")
    if verdict != "passed" or folder.resolve().name.endswith(_FAILED_SUFFIX):
        raise BadInputError(
            f"{folder} did not pass its certificate (verdict {shown(verdict)}), so it is not pushed: see "
            f"{folder / OURS / 'certificate.json'}, and bake again"
        )


def _target(repo: str, revision: str | None) -> RepoId:
    parsed = parse_repo_id(repo)
    if revision is None:
        return parsed
    if parsed.revision is not None and parsed.revision != revision:
        raise BadInputError(f"{repo} and --revision {revision} name two branches: give one")
    check_revision(revision)
    return RepoId(parsed.repo, revision)


def _names(folder: Path) -> Iterator[str]:
    """Names of the files to send, in order: neither hidden ones (nor what lies in hidden folders) nor locks."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if any(part.startswith(".") for part in name.parts) or path.name.endswith(_LOCK_SUFFIX):
            continue
        check_inside(folder, name.as_posix())
        if path.is_file():
            yield name.as_posix()


def _send(folder: Path, target: RepoId, files: tuple[tuple[str, int], ...], *, private: bool) -> Upload:
    from huggingface_hub import HfApi  # noqa: PLC0415 - only those who use the hub pay for its client

    api = HfApi(library_name="alignez-bake")
    with hub_errors(target, "write"):
        # None, not False: an organisation may have said that its repositories are private.
        url = api.create_repo(target.repo, private=private or None, exist_ok=True)
        if private and not api.model_info(target.repo).private:
            raise BadInputError(
                f"{target.repo} exists and is public: make it private in its settings, or push without --private"
            )
        if target.revision is not None and not target.revision.startswith("refs/"):
            api.create_branch(target.repo, branch=target.revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=target.repo,
            folder_path=folder,
            revision=target.revision,
            commit_message=f"Upload {read_record(folder).get('artefact', 'result')} by {tool_name()}",
            # By name, so that what is sent is what was listed.
            allow_patterns=[glob.escape(name) for name, _ in files],
        )
    return Upload(target.repo, target.revision, str(url), commit.oid, files)
