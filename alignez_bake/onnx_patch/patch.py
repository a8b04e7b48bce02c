"""Writes the patched graph with its data files into a folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from alignez_bake.file_sharing import share_file
from alignez_bake.onnx_patch.apply import patched_model
from alignez_bake.onnx_patch.base_graph import data_files
from alignez_bake.onnx_patch.changes import GraphChanges
from alignez_bake.onnx_patch.edits_data import ENDING, edits_data
from alignez_bake.onnx_patch.fold_site import fold_site
from alignez_bake.onnx_patch.insert_site import insert_site
from alignez_bake.safetensors_io.dtypes import numpy_dtype_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from alignez_bake.onnx_patch.base_graph import BaseGraph
    from alignez_bake.onnx_patch.decisions import SitePatch
    from alignez_bake.progress import Progress


class Written(NamedTuple):
    """What a patch wrote.

    Attributes:
        data_files: the base's data files, and how each came into the folder.
        size: bytes of the graph file and of the side file.
    """

    data_files: tuple[tuple[str, str], ...]
    size: int


def write_patched(graph: BaseGraph, patches: Sequence[SitePatch], folder: Path, progress: Progress) -> Written:
    """Write the graph under its own name; new values into a side file if the base has its weights in one.

    Args:
        graph: the base.
        patches: what to do at each site.
        folder: to write into.
        progress: counts sites.

    Raises:
        BadInputError: values that are not finite, or overflow the graph's dtype.
    """
    target = folder / graph.path.name
    side = target.with_name(f"{target.name}{ENDING}")
    with edits_data(side if graph.data_files else None) as data:
        changes = GraphChanges(graph, data)
        with progress.task("patching sites", len(patches)) as advance:
            for patch in patches:
                (fold_site if patch.folds else insert_site)(changes, patch)
                advance()
    model = patched_model(changes, side.name)
    shared = []
    for name in data_files(model):
        if name == side.name:
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shared.append((name, share_file(graph.path.parent / name, folder / name)))
    target.write_bytes(model.SerializeToString(deterministic=True))
    size = target.stat().st_size + (side.stat().st_size if side.exists() else 0)
    return Written(tuple(shared), size)


def bytes_needed(graph: BaseGraph, patches: Sequence[SitePatch]) -> int:
    """About how many bytes `write_patched` writes, data files of the base left out."""
    total = 2 * graph.path.stat().st_size
    for patch in patches:
        graph_map = patch.graph_map
        size = numpy_dtype_of(graph_map.dtype).itemsize
        ranks = sum(edit.rank + 1 for edit in patch.edits)
        total += size * graph_map.fused * graph_map.d_in if patch.folds else 0
        total += size * ranks * (graph_map.fused + graph_map.d_in)
    return total
