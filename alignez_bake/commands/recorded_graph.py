"""The graph that a patched graph was made from, where its record says that it lies."""

from __future__ import annotations

import os
from pathlib import Path

from alignez_bake.errors import BadInputError
from alignez_bake.report.record import read_record


def recorded_graph(out: Path) -> Path:
    """The folder of a patched graph's base graph.

    Raises:
        BadInputError: not a result, or nothing lies there any more.
    """
    recorded = read_record(out).get("base_graph")
    path = recorded.get("path") if isinstance(recorded, dict) else None
    if not isinstance(path, str) or not (out / path).is_dir():
        raise BadInputError(
            f"the graph that {out} was made from is not where it was: name its folder with --base-onnx DIR"
        )
    return Path(os.path.normpath(out / path))
