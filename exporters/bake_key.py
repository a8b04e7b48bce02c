"""What a bake is, so that one that was killed is gone on with only by the same."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from alignez_bake.integrity.hashing import new_hasher
from alignez_bake.report.record import tool_name

if TYPE_CHECKING:
    from alignez_bake.exporters.protocol import ExportSettings

    from alignez_bake.edit_plan import EditPlan
    from alignez_bake.lowering.decide import Lowering
    from alignez_bake.model_folder import ModelFolder


def bake_key(base: ModelFolder, lowering: Lowering, settings: ExportSettings) -> dict[str, Any]:
    """Base, edits, way and settings of a bake, as JSON values.

    The base's weights are told by fingerprint, sizes and times of change: a base that was written anew meanwhile is
    another one, even if nobody can see a difference at the edges of its tensors.
    """
    files = [base.tensors.header(file) for file in base.tensors.files]
    return {
        "tool": tool_name(),
        "base": asdict(base.fingerprint),
        "base_files": [[header.path.name, header.file_size, header.identity[-1]] for header in files],
        "config": _digest(json.dumps(base.config, sort_keys=True).encode("utf-8")),
        "edits": _edits_digest(lowering.plan),
        "ways": [decision.route for decision in lowering.decisions],
        "artefact": lowering.target,
        "dtype": settings.dtype,
        "settings": {**settings.options(), "hash": settings.hash_algorithm},
        "row_backend": settings.row_backend,
    }


def _edits_digest(plan: EditPlan) -> str:
    hasher = new_hasher()
    for edit in plan.edits:
        arrays = {name: getattr(edit, name) for name in ("left", "right", "offset", "bias")}
        described = [
            str(edit.site),
            edit.reads,
            edit.gate,
            edit.positions,
            edit.strength,
            edit.objective,
            {name: None if array is None else [str(array.dtype), *array.shape] for name, array in arrays.items()},
        ]
        hasher.update(json.dumps(described).encode("utf-8"))
        for array in arrays.values():
            if array is not None:
                hasher.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    hasher.update(json.dumps(dict(plan.weights), sort_keys=True).encode("utf-8"))
    return hasher.hexdigest()


def _digest(data: bytes) -> str:
    hasher = new_hasher()
    hasher.update(data)
    return hasher.hexdigest()
