"""A result against its manifest: every file is there as it was written, and none came that matters.

It needs no base. What it shows is that nothing changed since the bake, by accident or by somebody who left the manifest
alone; it is worth as much as the place that the manifest came from.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from alignez_bake.errors import BadInputError
from alignez_bake.integrity.folder_files import MANIFEST_FILE, files_in, is_hidden, may_be_added
from alignez_bake.integrity.hashing import hash_file, hash_with_tensors
from alignez_bake.integrity.manifest import read_manifest
from alignez_bake.progress import NoProgress
from alignez_bake.safetensors_io.folder_layout import check_inside
from alignez_bake.safetensors_io.header import read_header
from alignez_bake.safetensors_io.strict_json import shown

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from alignez_bake.certificate.verdict import Verdict
    from alignez_bake.integrity.manifest import Manifest
    from alignez_bake.progress import Progress


@dataclass(frozen=True)
class ManifestCheck:
    """What a comparison with the manifest found.

    Attributes:
        verdict: `passed` or `failed`.
        reasons: one line each for what is not as it was written.
        notes: one line each for what changed and matters to no loader: hidden files.
        not_checked: what could not be checked without the base, one line each; nothing where it was at hand.
        algorithm: of the hashes.
        manifest_hash: of the manifest itself: who publishes it elsewhere lets others prove the whole result.
        files: number of files that the manifest lists.
        as_base: how many of them are the base's, by the hashes that were taken at baking.
        tensors: number of edited and added tensors.
        size: of all files, in bytes.
    """

    verdict: Verdict
    reasons: tuple[str, ...]
    notes: tuple[str, ...]
    not_checked: tuple[str, ...]
    algorithm: str
    manifest_hash: str
    files: int
    as_base: int
    tensors: int
    size: int

    def without(self, *limits: str) -> ManifestCheck:
        """The same, with what could not be checked beside it."""
        return replace(self, not_checked=(*self.not_checked, *limits))

    def to_json(self) -> dict[str, Any]:
        """The figures as JSON values."""
        return {
            "verdict": self.verdict,
            "reasons": list(self.reasons),
            "notes": list(self.notes),
            "not_checked": list(self.not_checked),
            "algorithm": self.algorithm,
            "manifest_hash": self.manifest_hash,
            "files": self.files,
            "files_as_in_base": self.as_base,
            "edited_and_added_tensors": self.tensors,
            "bytes": self.size,
        }

    def main_figures(self) -> list[tuple[str, str]]:
        """What people are shown, verdict first."""
        return [
            ("verdict", self.verdict),
            ("files as written", str(self.files)),
            ("of them the base's, by its hashes at baking", str(self.as_base)),
            ("edited and added tensors", str(self.tensors)),
            (f"{self.algorithm} of the manifest", self.manifest_hash),
            *(("reason", reason) for reason in self.reasons),
            *(("note", note) for note in self.notes),
            *(("not checked", limit) for limit in self.not_checked),
        ]


def check_manifest(folder: Path, *, progress: Progress | None = None) -> ManifestCheck:
    """Compare a result with its manifest: names, sizes, hashes of files and of edited tensors.

    Args:
        folder: the result.
        progress: counts files.

    Raises:
        BadInputError: the manifest itself is absent or damaged.
    """
    manifest = read_manifest(folder)
    _, own_hash = hash_file(folder / MANIFEST_FILE, manifest.algorithm)
    changes: dict[str, list[str]] = {"reason": [], "note": []}
    with (progress or NoProgress()).task("comparing with the manifest", len(manifest.files)) as advance:
        for name in manifest.files:
            changes["note" if is_hidden(name) else "reason"] += _changes(folder, name, manifest)
            advance()
    added = [name for name in files_in(folder) if name not in manifest.files and not may_be_added(name)]
    reasons = [*changes["reason"], *(f"{shown(name)} was not there after the bake" for name in added)]
    entries = manifest.files.values()
    return ManifestCheck(
        "failed" if reasons else "passed",
        tuple(reasons),
        tuple(changes["note"]),
        (),
        manifest.algorithm,
        own_hash,
        len(entries),
        sum(entry.hash == entry.base_hash for entry in entries),
        len(manifest.tensors),
        sum(entry.size for entry in entries),
    )


def _changes(folder: Path, name: str, manifest: Manifest) -> list[str]:
    """What of one file is not as it was written, one line each; a file that cannot be read is one of them."""
    path = folder / name
    if not path.exists():
        return [f"{shown(name)} is missing"]
    tensors = [tensor for tensor, hashes in manifest.tensors.items() if hashes.file == name]
    try:
        check_inside(folder, name)
        return _of_weights(path, name, manifest, tensors) if tensors else _of_bytes(path, name, manifest)
    except BadInputError as error:
        return [f"{shown(name)} was changed: {error}"]


def _of_bytes(path: Path, name: str, manifest: Manifest) -> list[str]:
    entry, size = manifest.files[name], path.stat().st_size
    # Another size is another file: no need to read it.
    if size != entry.size:
        return [f"{shown(name)} has {size} bytes, and had {entry.size}"]
    return [] if hash_file(path, manifest.algorithm)[1] == entry.hash else [f"{shown(name)} was changed"]


def _of_weights(path: Path, name: str, manifest: Manifest, wanted: Sequence[str]) -> list[str]:
    entry = manifest.files[name]
    size, found, tensors = hash_with_tensors(read_header(path), frozenset(wanted), manifest.algorithm)
    differing = [tensor for tensor in wanted if tensors.get(tensor) != manifest.tensors[tensor].hash]
    if (size, found) == (entry.size, entry.hash) and not differing:
        return []
    return [f"{shown(name)} was changed{_where(differing, tensors)}"]


def _where(differing: Sequence[str], found: dict[str, str]) -> str:
    """Which of the edited tensors differ; of the others only the base knows what they must be."""
    if not differing:
        return ", and none of its edited tensors"
    parts = [f"{shown(name)}{'' if name in found else ', which is missing'}" for name in differing[:5]]
    more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
    return f": {len(differing)} edited or added tensor(s) are not as they were written: {', '.join(parts)}{more}"
