"""The exporters by the name that `--as` uses."""

from __future__ import annotations

from typing import Final

from alignez_bake.exporters.checkpoint import CheckpointExporter

from alignez_bake.errors import BadInputError

EXPORTERS: Final = {"checkpoint": CheckpointExporter}
DEFAULT_EXPORTER: Final = "checkpoint"
NOT_YET_AVAILABLE: Final = ("adapter", "gguf", "edits", "onnx", "onnx-genai")


def exporter_named(name: str) -> CheckpointExporter:
    """The exporter of that name.

    Raises:
        BadInputError: there is none, or a later version brings it.
    """
    if name in EXPORTERS:
        return EXPORTERS[name]()
    known = ", ".join(EXPORTERS)
    if name in NOT_YET_AVAILABLE:
        raise BadInputError(f"--as {name!r} is not available yet: use one of {known}")
    raise BadInputError(f"--as {name!r} is unknown: use one of {known}")
