"""What a patched graph's folder says of itself. Its base is a graph, so a base model need not be known."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Any, Final

from alignez_bake.edit_file import write_edits
from alignez_bake.exporters.output_folder import OURS
from alignez_bake.report.record import (
    EDITS_FILE,
    PATCHED_GRAPH,
    RECORD_FILE,
    decisions_json,
    installed_versions,
    tool_name,
    write_json,
)
from alignez_bake.runtime.providers import runtime_package
from alignez_bake.safetensors_io.fingerprint import config_sha256

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from alignez_bake.edit_plan import BaseFingerprint, EditPlan
    from alignez_bake.exporters.protocol import SkippedFile
    from alignez_bake.lowering.decide import Decision
    from alignez_bake.onnx_patch.base_graph import BaseGraph

_ENDS: Final = 64 * 1024


def graph_fingerprint(graph: BaseGraph) -> dict[str, Any]:
    """What tells a graph from another: its file, and of each data file its size, beginning and end."""
    return {
        "model_type": graph.architecture.model_type,
        "config_sha256": config_sha256(graph.config),
        "graph_sha256": _sha256(graph.path),
        "data_sha256": {name: _sampled_sha256(graph.path.parent / name) for name in graph.data_files},
    }


def write_graph_record(
    folder: Path,
    out: Path,
    graph: BaseGraph,
    plan: EditPlan,
    decisions: Sequence[Decision],
    *,
    model: BaseFingerprint | None,
    skipped: Sequence[SkippedFile],
    seed: int,
) -> None:
    """Write `alignez/edits.safetensors` and `alignez/alignez.json`.

    Args:
        folder: the result folder being written.
        out: where it will lie; the path of the graph's folder is recorded relative to it.
        graph: the graph that was patched.
        plan: the edits.
        decisions: the way of each.
        model: the base model that the graph was compared with, if there was one.
        skipped: files of the graph's folder that are not in the result.
        seed: recorded.
    """
    write_edits(plan, folder / OURS / EDITS_FILE)
    base = None if model is None else {
        "model_type": model.model_type,
        "config_sha256": model.config_sha256,
        "tensors_sha256": model.tensors_sha256,
    }  # fmt: skip
    write_json(
        folder / OURS / RECORD_FILE,
        {
            "tool": tool_name(),
            "artefact": PATCHED_GRAPH,
            "base": base,
            "base_graph": {
                **graph_fingerprint(graph),
                "path": os.path.relpath(graph.folder.resolve(), out.resolve()),
            },
            "seed": seed,
            "weights": dict(plan.weights),
            "provenance": dict(plan.provenance),
            "decisions": decisions_json(decisions),
            "files_left_out": [{"name": entry.name, "reason": entry.reason} for entry in skipped],
            "versions": {**installed_versions(), **_graph_versions()},
        },
    )


def _graph_versions() -> dict[str, str]:
    import onnx  # noqa: PLC0415 - comes with an extra

    return {"onnx": onnx.__version__, "onnxruntime": runtime_package().__version__}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sampled_sha256(path: Path) -> str:
    """Of the size and of the first and last 64 KiB: cheap at any size."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        digest = hashlib.sha256(f"{size}:".encode())
        digest.update(file.read(_ENDS))
        file.seek(max(0, size - _ENDS))
        digest.update(file.read(_ENDS))
    return digest.hexdigest()
