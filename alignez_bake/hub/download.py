"""Bases and edits from the hub: only safetensors and what belongs to them, into the client's own cache.

The client honours HF_ENDPOINT, HF_HUB_OFFLINE, HF_HOME and the usual places of tokens; nothing of that is done here.
It is imported inside of functions, because a bake of a local folder needs none of it.
"""

from __future__ import annotations

import glob
import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

from alignez_bake.errors import BadInputError
from alignez_bake.exporters.output_folder import OURS
from alignez_bake.hub.errors import hub_errors
from alignez_bake.hub.repo_id import RepoId, looks_like_repo_id, parse_repo_id
from alignez_bake.safetensors_io.folder_layout import INDEX_FILE, SINGLE_FILE, read_index
from alignez_bake.tuning.frontier_files import (
    edits_at_point,
    frontier_folder,
    no_such_point,
    point_file,
    points_among,
    points_beside,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import PurePath

# The client's documented cache: `models--user--repo/snapshots/COMMIT`. No name has `--` in it, so this is unambiguous.
_CACHED_REPO: Final = re.compile(r"models--([^/]+?)--([^/]+)")
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
EDITS_FILE: Final = "edits.safetensors"
# By name, not by suffix: the client's wildcards match across folders, and `*.json` would bring other people's
# exports along. A leading name without wildcard is at the top only.
SMALL_FILES: Final = (
    "config.json",
    "generation_config.json",
    INDEX_FILE,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "tokenizer.model.v*",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "*.tiktoken",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    "README.md",
    "LICENSE*",
    "LICENCE*",
    "COPYING*",
    "NOTICE*",
    "USE_POLICY*",
)
CODE_FILES: Final = ("*.py",)
# Whatever the patterns above let through, these never come: pickles run code when they are loaded, and the others
# are further copies of the weights.
NEVER: Final = (
    *("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt", "*.npz", "*.joblib"),
    *("*.gguf", "*.onnx", "*.onnx_data", "*.h5", "*.msgpack", "*.tflite", "*.ot", "*.zip", "*.tar*"),
)


def base_folder(model: str | Path, *, trust_remote_code: bool = False) -> Path:
    """The folder of a base: itself if it exists, else the snapshot of `user/repo[@revision]` in the hub's cache.

    Args:
        model: a folder, or the name of a repository; what exists on this machine comes first.
        trust_remote_code: whether `*.py` files are downloaded too.

    Returns:
        A folder with config.json; its files may be links into the cache's `blobs`.

    Raises:
        BadInputError: neither a folder nor such a name, or the hub does not give it; see `hub_errors`.
    """
    path = Path(model)
    if path.exists():
        return path
    if not looks_like_repo_id(str(model)):
        raise BadInputError(f"no such model folder: {path} (and no name on the hub, which is user/repo[@revision])")
    repo = parse_repo_id(str(model))
    code = CODE_FILES if trust_remote_code else ()
    snapshot = _snapshot(repo, SMALL_FILES + code)
    # The commit, so that both halves are of one revision even if somebody pushes in between.
    pinned = RepoId(repo.repo, snapshot.name)
    weights = _weight_files(snapshot)
    _snapshot(pinned, [glob.escape(name) for name in weights])
    if not (snapshot / "config.json").exists():
        raise BadInputError(f"{repo} is no model: it has no config.json{_as_cached()}")
    if not (snapshot / weights[0]).exists():
        raise BadInputError(
            f"{repo} has no {weights[0]}{_as_cached()}: only safetensors are read, because unpickling other weights "
            "runs code; use a revision that has them, or convert the model with a tool that you trust"
        )
    return snapshot


def cached_base(repo: RepoId) -> Path | None:
    """The snapshot of a base if the hub's cache has all of it, else None; nobody is asked, nothing is downloaded."""
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415 - only those who use the hub pay for its client

    with hub_errors(repo, "read"):
        config = try_to_load_from_cache(repo.repo, "config.json", revision=repo.revision)
    if not isinstance(config, str):
        return None
    snapshot = Path(config).parent
    return snapshot if all((snapshot / name).exists() for name in _weight_files(snapshot)) else None


def _weight_files(snapshot: Path) -> list[str]:
    """Names of the shards that the index lists, or of the one file where there is none."""
    index = snapshot / INDEX_FILE
    return sorted({SINGLE_FILE} if not index.exists() else set(read_index(index)["weight_map"].values()))


def hub_name(model: str | Path) -> str | None:
    """`user/repo` if that is what `base_folder` would take from the hub; None for what exists on this machine."""
    text = str(model)
    return None if Path(model).exists() or not looks_like_repo_id(text) else parse_repo_id(text).repo


def cached_repo(folder: Path) -> RepoId | None:
    """The repository and commit of which a folder is the snapshot in the hub's cache; None for any other folder."""
    snapshot = folder.resolve()
    name = _CACHED_REPO.fullmatch(snapshot.parent.parent.name)
    if name is None or snapshot.parent.name != "snapshots" or not _COMMIT.fullmatch(snapshot.name):
        return None
    repo = RepoId(f"{name[1]}/{name[2]}", snapshot.name)
    return repo if looks_like_repo_id(str(repo)) else None


def edits_file(edits: str | Path) -> Path:
    """The file of edits: itself, the one in a result folder, or the one of a repository of the hub.

    Args:
        edits: a file; a folder with `edits.safetensors` or `alignez/edits.safetensors`; or `user/repo[@revision]`
            of a repository with one of them, of which nothing else is downloaded.

    Raises:
        BadInputError: none of them, or the hub does not give it; see `hub_errors`.
    """
    path = Path(edits)
    if path.is_dir():
        return _edits_in(path, str(path))
    if path.exists():
        return path
    if not looks_like_repo_id(str(edits)):
        raise BadInputError(f"no such file of edits: {path} (and no name on the hub, which is user/repo[@revision])")
    return _edits_of(parse_repo_id(str(edits)))[1]


def edits_file_at_point(edits: str | Path, point: str) -> Path:
    """The file of another candidate of the search that chose some edits.

    Args:
        edits: as for `edits_file`; of a repository the edits and this candidate are downloaded, of one commit.
        point: name of the candidate, which lies beside them.

    Raises:
        BadInputError: as `edits_file`; or there is no such candidate: the message lists those that there are.
    """
    if Path(edits).exists() or not looks_like_repo_id(str(edits)):
        return edits_at_point(edits_file(edits), point)
    from huggingface_hub import constants  # noqa: PLC0415 - only those who use the hub pay for its client

    repo = parse_repo_id(str(edits))
    snapshot, file = _edits_of(repo)
    names = points_beside(file)
    if point not in names and not constants.HF_HUB_OFFLINE:
        pinned = RepoId(repo.repo, snapshot.name)
        names = points_among(_names_in(pinned, frontier_folder(file).relative_to(snapshot)))
        # What is downloaded is a name of the hub's list, never one unseen.
        if point in names:
            wanted = point_file(file, point).relative_to(snapshot).as_posix()
            _snapshot(pinned, [glob.escape(wanted)])
    if point not in names:
        raise no_such_point(point, f"{repo}{_as_cached()}", names)
    return edits_at_point(file, point)


def _edits_of(repo: RepoId) -> tuple[Path, Path]:
    """The snapshot of a repository with nothing but its edits, and their file."""
    snapshot = _snapshot(repo, (EDITS_FILE, f"{OURS}/{EDITS_FILE}"))
    return snapshot, _edits_in(snapshot, f"{repo}{_as_cached()}")


def _names_in(repo: RepoId, folder: PurePath) -> list[str]:
    """Names of the files right inside a folder of a repository, as the hub lists them."""
    from huggingface_hub import HfApi  # noqa: PLC0415 - only those who use the hub pay for its client

    with hub_errors(repo, "read"):
        listed = HfApi().model_info(repo.repo, revision=repo.revision).siblings or []
    paths = [PurePosixPath(file.rfilename) for file in listed]
    return [path.name for path in paths if path.parent == PurePosixPath(folder)]


def _edits_in(folder: Path, name: str) -> Path:
    for candidate in (folder / EDITS_FILE, folder / OURS / EDITS_FILE):
        if candidate.exists():
            return candidate
    raise BadInputError(f"{name} has neither {EDITS_FILE} nor {OURS}/{EDITS_FILE}: give a file of edits, or a result")


def _snapshot(repo: RepoId, patterns: Sequence[str]) -> Path:
    """Download the files that match and give the snapshot's folder, which is named after its commit."""
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - only those who use the hub pay for its client

    with hub_errors(repo, "read"):
        folder = snapshot_download(
            repo.repo, revision=repo.revision, allow_patterns=list(patterns), ignore_patterns=list(NEVER)
        )
    return Path(folder)


def _as_cached() -> str:
    """Offline, what is missing may only be missing here."""
    from huggingface_hub import constants  # noqa: PLC0415

    return " in the local cache, and HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else ""
