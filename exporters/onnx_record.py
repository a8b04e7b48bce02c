"""What the record of a result with a graph says of how it was made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignez_bake.exporters.dtype import check_dtype
from alignez_bake.exporters.protocol import ExportSettings

from alignez_bake.errors import BadInputError
from alignez_bake.report.record import read_record

if TYPE_CHECKING:
    from pathlib import Path


def recorded_settings(out: Path, artefact: str) -> ExportSettings:
    """What a result was made with.

    Args:
        out: the result.
        artefact: name of its exporter, for messages.

    Raises:
        BadInputError: no record, or one with settings that there are not.
    """
    record = read_record(out)
    options = record.get("options", {})
    kinds = {"opset": int, "external_data": bool, "optimise": bool, "weight_bits": int}
    if not isinstance(options, dict) or any(type(value) is not kinds.get(name) for name, value in options.items()):
        raise BadInputError(f"the record of {out} has options that --as {artefact} does not know: {options!r}")
    dtype = record.get("dtype")
    return ExportSettings(check_dtype(dtype if isinstance(dtype, str) else None), **options)
