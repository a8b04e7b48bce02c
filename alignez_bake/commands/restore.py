"""`restore`: a baked checkpoint becomes its base again, byte for byte; proved by the hashes that the bake took."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from alignez_bake.errors import BadInputError
from alignez_bake.exporters.output_folder import OURS, check_space, staged_output, staging_path
from alignez_bake.hub.download import base_folder
from alignez_bake.integrity.base_files import make_file, plan_files
from alignez_bake.integrity.base_parts import BASE_TENSORS_FILE, BaseFolder, KeptParts
from alignez_bake.integrity.folder_files import MANIFEST_FILE, files_in
from alignez_bake.integrity.hashing import hash_file
from alignez_bake.integrity.manifest import has_manifest, read_manifest
from alignez_bake.integrity.swap import aside, put_back, swap_folders
from alignez_bake.model_folder import open_model_folder
from alignez_bake.progress import NoProgress
from alignez_bake.report.record import read_record, recorded_base
from alignez_bake.safetensors_io.reader import open_folder
from alignez_bake.safetensors_io.strict_json import shown

if TYPE_CHECKING:
    from alignez_bake.integrity.base_parts import BaseParts
    from alignez_bake.integrity.manifest import Manifest
    from alignez_bake.progress import Progress

_CHECKPOINT: Final = "checkpoint"
_NAMES_SHOWN: Final = 5


@dataclass(frozen=True)
class RestoreResult:
    """What lies at OUT now: the base.

    Attributes:
        path: the folder.
        source: where what the result lacked came from.
        files: the base's files, and how each came back: `kept`, `rebuilt` or `taken`.
        left_out: files of the base that the bake had left out, with the reason: they are not restored.
    """

    path: Path
    source: str
    files: tuple[tuple[str, str], ...]
    left_out: tuple[tuple[str, str], ...]

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values."""
        return {
            "out": str(self.path),
            "restored_from": self.source,
            "files": [{"name": name, "way": way} for name, way in self.files],
            "files_left_out": [{"name": name, "reason": reason} for name, reason in self.left_out],
        }


def restore(out: str | Path, base: str | Path | None = None, *, progress: Progress | None = None) -> RestoreResult:
    """Make a baked checkpoint its base again, in place, whole or not at all.

    Every file is made beside OUT and proved by its hash before the two folders change names. Nothing is written into
    files that are there: what OUT shares with its base, or a base with the hub's cache, stays as it is.

    Args:
        out: the result folder.
        base: the base's folder or hub id. Unless given, what the result kept of its base (`bake --reversible`), else
            the base where it lay at baking.
        progress: counts files.

    Raises:
        BadInputError: no checkpoint of this tool, one without a manifest, files that nobody baked, or no base.
        CheckFailedError: result or base changed since the bake, so that a file is not the base's; nothing was done.
    """
    out = Path(os.path.abspath(out))  # noqa: PTH100 - resolve() would follow a link, which is refused below
    put_back(out)
    if (before := _swapped_already(out)) is not None:
        return _tidied(out, before)
    left_out = _check_restorable(out)
    manifest = read_manifest(out)
    _check_files(out, manifest)
    result, parts = open_folder(out), _base_parts(out, base)
    plan = plan_files(result, manifest, parts)
    check_space(out, sum(manifest.files[file.name].size for file in plan if file.own is None))
    files = []
    with staged_output(out) as staging:
        with (progress or NoProgress()).task("restoring files", len(plan)) as advance:
            for file in plan:
                files.append((file.name, make_file(file, result, manifest, parts, staging / file.name)))
                advance()
        shutil.copymode(out, staging)
        # A kill from here on leaves the old folder beside OUT, for the next run to remove.
        shutil.rmtree(_swapped(staging, out))
    return RestoreResult(out, str(parts), tuple(files), left_out)


def _check_restorable(out: Path) -> tuple[tuple[str, str], ...]:
    """Refuse what is no checkpoint of ours; what its bake left out, by its record.

    Raises:
        BadInputError: the reason.
    """
    if out.is_symlink():
        raise BadInputError(f"{out} is a link: name the folder that it leads to")
    record = read_record(out)
    artefact = record.get("artefact")
    if artefact != _CHECKPOINT:
        raise BadInputError(
            f"restore undoes checkpoints, and {out} is --as {shown(artefact)}: its base is as it was; remove {out} if "
            "it is not wanted any more"
        )
    if not has_manifest(out):
        raise BadInputError(
            f"{out} has no {MANIFEST_FILE}, without which nothing proves that its base is restored: it was baked by an "
            "earlier version; take the base itself"
        )
    entries = record.get("files_left_out")
    return tuple(
        (str(entry.get("name")), str(entry.get("reason")))
        for entry in (entries if isinstance(entries, list) else [])
        if isinstance(entry, dict)
    )


def _check_files(out: Path, manifest: Manifest) -> None:
    """Refuse a folder with files that the bake did not write, which would be lost, and one of links.

    Raises:
        BadInputError: the names of some.
    """
    names = files_in(out)
    if linked := [name for name in names if (out / name).is_symlink()]:
        raise BadInputError(
            f"{out} holds links ({_listed(linked)}), as a snapshot of the hub's cache does: restore a copy of it"
        )
    if foreign := [name for name in names if name not in manifest.files]:
        raise BadInputError(
            f"{out} holds {len(foreign)} file(s) that the bake did not write and that would be lost "
            f"({_listed(foreign)}): move them elsewhere"
        )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(shown(name) for name in names[:_NAMES_SHOWN]) + more


def _base_parts(out: Path, base: str | Path | None) -> BaseParts:
    """What the base has and the result lacks: from the base that is named, else kept in the result, else recorded.

    Raises:
        BadInputError: no base, or another than the one that the result was made from.
    """
    if base is None and (out / BASE_TENSORS_FILE).is_file():
        return KeptParts(out)
    folder = open_model_folder(_recorded(out) if base is None else base_folder(base), fp8=True)
    recorded, found = read_record(out).get("base"), folder.fingerprint
    if not isinstance(recorded, dict) or any(
        recorded.get(name) != getattr(found, name) for name in ("model_type", "config_sha256", "tensors_sha256")
    ):
        raise BadInputError(f"{folder.path} is not the base that {out} was made from: name the right one with --base")
    return BaseFolder(folder.path, folder.tensors)


def _recorded(out: Path) -> Path:
    try:
        return recorded_base(out)
    except BadInputError as error:
        raise BadInputError(
            f"{out} keeps no part of its base (it was not baked with --reversible), and its base is not where it was "
            "when it was baked: name it with --base BASE"
        ) from error


def _swapped(new: Path, out: Path) -> Path:
    """Give the new folder the name OUT; where the old one lies now.

    Raises:
        BadInputError: they cannot be renamed; nothing changed.
    """
    try:
        return swap_folders(new, out)
    except OSError as error:
        raise BadInputError(
            f"{out} cannot be replaced ({error.strerror or error}): it is as it was; is it a mount point?"
        ) from error


def _swapped_already(out: Path) -> Path | None:
    """Where the result lies that a killed run had replaced by its base, and not removed yet; None where there is none.

    Only a folder that is that base to the last byte counts: OUT may be anybody's folder by now.
    """
    if not out.is_dir() or (out / OURS).exists():
        return None
    for before in (aside(out), staging_path(out)):
        if has_manifest(before):
            manifest = read_manifest(before)
            wanted = {name: entry.base_hash for name, entry in manifest.files.items() if entry.base_hash is not None}
            if files_in(out) == sorted(wanted) and all(
                hash_file(out / name, manifest.algorithm)[1] == base_hash for name, base_hash in wanted.items()
            ):
                return before
    return None


def _tidied(out: Path, before: Path) -> RestoreResult:
    """Remove what a killed run left, after which there is nothing to do."""
    names = files_in(out)
    shutil.rmtree(before)
    return RestoreResult(out, "a run that was interrupted", tuple((name, "kept") for name in names), ())
