"""`alignez/`: what a result folder says of itself, and how it is read again."""

from __future__ import annotations

import json
import os
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from alignez_bake import __version__
from alignez_bake.edit_file import read_edits, write_edits
from alignez_bake.errors import BadInputError
from alignez_bake.exporters.output_folder import OURS
from alignez_bake.hub.download import cached_base, cached_repo
from alignez_bake.hub.repo_id import RepoId, looks_like_repo_id
from alignez_bake.safetensors_io.strict_json import parse_object
from alignez_bake.streaming.rounding_choice import checked_rounding

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from alignez_bake.certificate.verdict import LevelCertificate, Verdict
    from alignez_bake.edit_plan import EditPlan
    from alignez_bake.exporters.protocol import ExportSettings, SkippedFile
    from alignez_bake.lowering.decide import Decision, Lowering
    from alignez_bake.model_folder import ModelFolder
    from alignez_bake.streaming.rounding_choice import AskedRounding

EDITS_FILE: Final = "edits.safetensors"
RECORD_FILE: Final = "alignez.json"
CERTIFICATE_FILE: Final = "certificate.json"
PATCHED_GRAPH: Final = "onnx-patch"
"""What a record calls the result of `bake --base-onnx`, which has a graph for a base instead of a model."""
_PACKAGES: Final = ("ml_dtypes", "numpy", "safetensors", "tokenizers", "torch", "transformers")
_MAX_BYTES: Final = 256 * 1024 * 1024


def tool_name() -> str:
    """Name and version of this tool, as records carry them."""
    return f"alignez-bake {__version__}"


def installed_versions() -> dict[str, str]:
    """Versions of the packages that a result depends on."""
    return {name: metadata.version(name) for name in _PACKAGES}


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON that people can read, the same bytes for the same value."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def decisions_json(decisions: Sequence[Decision]) -> list[dict[str, Any]]:
    """Every decision, with its reason."""
    return [
        {
            "edit": decision.index,
            "site": str(decision.edit.site),
            "objective": decision.edit.objective,
            "rank": decision.edit.rank,
            "route": decision.route,
            "reason": decision.reason,
            "exactness": decision.exactness,
            "cost": decision.cost,
        }
        for decision in decisions
    ]


def write_record(
    folder: Path,
    out: Path,
    base: ModelFolder,
    lowering: Lowering,
    settings: ExportSettings,
    *,
    skipped: Sequence[SkippedFile],
    seed: int,
) -> None:
    """Write `alignez/edits.safetensors` and `alignez/alignez.json`.

    Args:
        folder: the result folder being written.
        out: where it will lie; the path of a base that is a folder is recorded relative to it.
        base: the base model.
        lowering: what was done with each edit.
        settings: what was asked of the artefact.
        skipped: files of the base that are not in the result.
        seed: of everything that was sampled.
    """
    plan = lowering.plan
    fingerprint = base.fingerprint
    write_edits(plan, folder / OURS / EDITS_FILE)
    write_json(
        folder / OURS / RECORD_FILE,
        {
            "tool": tool_name(),
            "artefact": lowering.target,
            "base": {
                "model_type": fingerprint.model_type,
                "config_sha256": fingerprint.config_sha256,
                "tensors_sha256": fingerprint.tensors_sha256,
                **_place(base.path, out),
            },
            "dtype": settings.dtype,
            "options": settings.options(),
            "row_backend": settings.row_backend,
            "seed": seed,
            "weights": dict(plan.weights),
            "provenance": dict(plan.provenance),
            "decisions": decisions_json(lowering.decisions),
            "files_left_out": [{"name": entry.name, "reason": entry.reason} for entry in skipped],
            "versions": installed_versions(),
        },
    )


def _place(base: Path, out: Path) -> dict[str, str]:
    """How the base is found again: its name on the hub and its commit, or the way from the result to its folder.

    A base of the hub is not recorded as a path: its cache lies elsewhere on every machine, and below somebody's home.
    """
    repo = cached_repo(base)
    if repo is None or repo.revision is None:
        return {"path": os.path.relpath(base.resolve(), out.resolve())}
    return {"repo": repo.repo, "commit": repo.revision}


def write_certificate(
    folder: Path, levels: Sequence[LevelCertificate], verdict: Verdict | None, *, refit: Mapping[str, Any] | None = None
) -> None:
    """Write `alignez/certificate.json`.

    Args:
        folder: the result folder.
        levels: what was measured.
        verdict: the worst of them; None of none.
        refit: how much of the original edits is kept, where they were changed to fold.
    """
    kept = {} if refit is None else {"refit": dict(refit)}
    write_json(
        folder / OURS / CERTIFICATE_FILE,
        {"tool": tool_name(), "verdict": verdict, "levels": {entry.level: entry.to_json() for entry in levels}, **kept},
    )


def read_record(result: Path) -> dict[str, Any]:
    """`alignez/alignez.json` of a result.

    Raises:
        BadInputError: no such folder, or one that this tool did not write.
    """
    return _read_json(result, RECORD_FILE)


def recorded_rounding(result: Path) -> AskedRounding:
    """The rule by which a checkpoint's edited values were rounded; the default where no record says.

    Raises:
        BadInputError: a damaged record, or one with a rule that there is not.
    """
    if not (result / OURS / RECORD_FILE).is_file():
        return "auto"
    options = read_record(result).get("options")
    return checked_rounding(str(options.get("rounding", "auto"))) if isinstance(options, dict) else "auto"


def read_certificate(result: Path) -> dict[str, Any]:
    """`alignez/certificate.json` of a result; errors as `read_record`."""
    return _read_json(result, CERTIFICATE_FILE)


def read_result_edits(result: Path) -> EditPlan:
    """`alignez/edits.safetensors` of a result; errors as `read_record` and `read_edits`."""
    _check_result(result)
    return read_edits(result / OURS / EDITS_FILE)


def recorded_base(result: Path) -> Path:
    """The folder of the base that the result names: where it lay, or its commit in this machine's cache of the hub.

    Whoever made the record may have named any repository, of any size: nothing is downloaded because of it.

    Raises:
        BadInputError: the result does not say, or nothing lies there any more, or not on this machine.
    """
    base = read_record(result).get("base")
    place = base if isinstance(base, dict) else {}
    name, commit = place.get("repo"), place.get("commit")
    if isinstance(name, str) and isinstance(commit, str) and looks_like_repo_id(f"{name}@{commit}"):
        repo = RepoId(name, commit)
        folder = cached_base(repo)
        if folder is None:
            raise BadInputError(
                f"the base of {result} is {repo} on the hub, which is not in this machine's cache: name it with "
                f"--model {repo}"
            )
        return folder
    path = place.get("path")
    if not isinstance(path, str) or not (result / path).is_dir():
        raise BadInputError(f"the base of {result} is not where it was when it was baked: name it with --model BASE")
    return Path(os.path.normpath(result / path))


def _read_json(result: Path, name: str) -> dict[str, Any]:
    _check_result(result)
    path = result / OURS / name
    if not path.is_file():
        raise BadInputError(f"{path} is missing: {result} is not a complete result of alignez-bake")
    if path.stat().st_size > _MAX_BYTES:
        raise BadInputError(f"{path} has {path.stat().st_size} bytes: at most {_MAX_BYTES} are read")
    return parse_object(path.read_bytes(), str(path))


def _check_result(result: Path) -> None:
    if not result.is_dir():
        raise BadInputError(f"no such result folder: {result}")
    if not (result / OURS).is_dir():
        raise BadInputError(f"{result} has no subfolder {OURS!r}: it is not a result of alignez-bake")
