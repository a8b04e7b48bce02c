"""A result as it lies on disk, with its base and the way of its edits: what `verify` and `compare` begin with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alignez_bake.errors import BadInputError
from alignez_bake.exporters.dtype import FILE_DTYPES
from alignez_bake.exporters.registry import exporter_named
from alignez_bake.hub.download import base_folder
from alignez_bake.lowering.lower import lower
from alignez_bake.model_folder import open_model_folder
from alignez_bake.report.record import PATCHED_GRAPH, read_record, read_result_edits, recorded_base

if TYPE_CHECKING:
    from pathlib import Path

    from alignez_bake.exporters.protocol import Exporter
    from alignez_bake.lowering.decide import Lowering
    from alignez_bake.model_folder import ModelFolder


@dataclass(frozen=True)
class OpenedResult:
    """A result and what it was made of.

    Attributes:
        path: its folder.
        base: the base, checked to be the one that it was made from.
        exporter: of its kind of artefact.
        lowering: the way of its edits, decided anew.
    """

    path: Path
    base: ModelFolder
    exporter: Exporter
    lowering: Lowering


def is_patched(out: Path) -> bool:
    """Whether a folder is a patched graph.

    Raises:
        BadInputError: not a result.
    """
    return read_record(out).get("artefact") == PATCHED_GRAPH


def open_result(out: Path, model: str | Path | None) -> OpenedResult:
    """Read the record of a result, and find its base.

    Args:
        out: the result folder.
        model: the base's folder or hub id, which is downloaded; what the record says unless given: where it lay at
            baking, or its commit in the hub's cache, which is not.

    Raises:
        BadInputError: not a result, damaged files, no base, or another base than the one it was made from.
    """
    fp8 = exporter_of(out).reads_fp8
    return result_with_base(out, open_model_folder(base_of(out, model), fp8=fp8))


def exporter_of(out: Path) -> Exporter:
    """The exporter that wrote a result.

    Raises:
        BadInputError: not a result, or an exporter that is not here.
    """
    return exporter_named(str(read_record(out).get("artefact")))


def base_of(out: Path, model: str | Path | None) -> Path:
    """The folder of a result's base; arguments and errors as `open_result`."""
    return recorded_base(out) if model is None else base_folder(model)


def result_with_base(out: Path, base: ModelFolder) -> OpenedResult:
    """A result and its base, which is open; errors as `open_result`."""
    record = read_record(out)
    plan = read_result_edits(out)
    exporter = exporter_of(out)
    _check_recorded_base(record, base, out)
    lowering = lower(plan, base, exporter, code=True, dtype=FILE_DTYPES.get(str(record.get("dtype"))))
    lowering.require_complete()
    return OpenedResult(out, base, exporter, lowering)


def _check_recorded_base(record: dict[str, Any], base: ModelFolder, out: Path) -> None:
    recorded = record.get("base")
    fingerprint = base.fingerprint
    if not isinstance(recorded, dict) or any(
        recorded.get(name) != getattr(fingerprint, name) for name in ("model_type", "config_sha256", "tensors_sha256")
    ):
        raise BadInputError(f"{base.path} is not the base that {out} was made from: name the right one with --model")
