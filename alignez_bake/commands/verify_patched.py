"""`verify` of a patched graph: compared and run again beside the graph that it was made from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignez_bake.commands.bake_onnx import running_level
from alignez_bake.commands.recorded_graph import recorded_graph
from alignez_bake.errors import BadInputError
from alignez_bake.hub.download import base_folder
from alignez_bake.model_folder import open_model_folder
from alignez_bake.onnx_patch.base_graph import open_base_graph
from alignez_bake.onnx_patch.base_weights import check_weights
from alignez_bake.onnx_patch.decisions import site_patches
from alignez_bake.onnx_patch.record import graph_fingerprint
from alignez_bake.onnx_patch.tensors_level import certify_stored
from alignez_bake.report.record import read_record, read_result_edits

if TYPE_CHECKING:
    from pathlib import Path

    from alignez_bake.certificate.verdict import Level, LevelCertificate
    from alignez_bake.onnx_patch.base_graph import BaseGraph
    from alignez_bake.progress import Progress


def verify_patched(
    out: Path,
    base_onnx: Path | None,
    model: str | Path | None,
    *,
    level: Level,
    device: str,
    trust_remote_code: bool,
    progress: Progress,
) -> list[LevelCertificate]:
    """Measure the certificate of a patched graph again; one that fails level `tensors` is not run.

    Args:
        out: the result folder.
        base_onnx: folder of the graph that it was made from; unless given where that lay.
        model: folder or hub id of the model that the graph was made of, to be compared with too; not if None.
        level: `tensors` compares files; `forward` also runs both graphs.
        device: for `forward`.
        trust_remote_code: passed to transformers' loader of the model.
        progress: where to say how far it is.

    Raises:
        BadInputError: damaged files, no base graph, or another than the one it was made from.
    """
    base = _open_graph(out, base_onnx)
    plan = read_result_edits(out)
    patches = site_patches(base, plan, require_fold=False)
    folder = None if model is None else open_model_folder(base_folder(model, trust_remote_code=trust_remote_code))
    if folder is not None:
        check_weights(base, folder, patches)
    graph = out / base.path.name
    levels: list[LevelCertificate] = [certify_stored(base, patches, graph, progress)]
    if level == "forward" and levels[0].verdict != "failed":
        levels.append(
            running_level(
                base,
                plan,
                patches,
                graph,
                folder,
                device=device,
                trust_remote_code=trust_remote_code,
                progress=progress,
            )
        )
    return levels


def _open_graph(out: Path, base_onnx: Path | None) -> BaseGraph:
    """The base graph, checked to be the one that the result was made from."""
    graph = open_base_graph(recorded_graph(out) if base_onnx is None else base_onnx)
    recorded = read_record(out).get("base_graph")
    place = recorded if isinstance(recorded, dict) else {}
    if {name: value for name, value in place.items() if name != "path"} != graph_fingerprint(graph):
        raise BadInputError(
            f"{graph.path} is not the graph that {out} was made from: name the right folder with --base-onnx DIR"
        )
    return graph
