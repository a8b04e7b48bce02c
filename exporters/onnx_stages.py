"""The graph of a lowering, step by step: the baked model traced, then fused operators, then weights of few bits.

Each step takes files and leaves files, so that a certificate can make an earlier one again and compare.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

import torch
from alignez_bake.exporters.baked_model import baked_checkpoint, load_baked
from alignez_bake.exporters.onnx import GRAPH_FILE

from alignez_bake.errors import BadInputError
from alignez_bake.onnx_export.graph import export_graph
from alignez_bake.onnx_export.opsets import DEFAULT_OPSET
from alignez_bake.onnx_optimise.optimise import optimise_graph
from alignez_bake.onnx_optimise.quantise import quantise_graph

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from alignez_bake.exporters.protocol import ExportSettings
    from transformers import PreTrainedModel

    from alignez_bake.lowering.decide import Lowering
    from alignez_bake.model_folder import ModelFolder
    from alignez_bake.progress import Progress

# Weights inside the graph's file are held several times while protobuf writes them (docs/decisions/onnx.md), so they
# stay there only where that is little.
LARGEST_INLINE: Final = 32 * 1024 * 1024


class Stage(NamedTuple):
    """A graph, and what a user should know of how it was made."""

    graph: Path
    notes: tuple[str, ...] = ()


def full_precision_graph(
    base: ModelFolder, lowering: Lowering, folder: Path, settings: ExportSettings, progress: Progress
) -> Stage:
    """Trace the baked model and fuse what was asked for: the graph before its weights are quantised.

    The model is loaded from the checkpoint that would be the result of `--as checkpoint`: what is traced is what its
    users get, and nothing of an edit is computed twice in two ways.

    Args:
        base: the base model.
        lowering: the way of every edit.
        folder: an empty folder to work in; there must be room for the baked checkpoint and two graphs.
        settings: what was asked for.
        progress: counts tensors, then steps.

    Raises:
        BadInputError: what torch cannot translate, or a graph in which nothing could be fused.
    """
    exported = _folder(folder / "exported") / GRAPH_FILE
    with baked_checkpoint(base, lowering, folder, dtype=settings.dtype, progress=progress) as checkpoint:
        _export(load_baked(base, lowering, checkpoint, device="cpu").model, exported, settings, progress)
    if not settings.optimise:
        return Stage(exported)
    fused = _folder(folder / "fused") / GRAPH_FILE
    with progress.task("fusing operators", 1) as advance:
        done = optimise_graph(exported, fused)
        advance()
    _remove(exported)
    listed = ", ".join(f"{count} {operator}" for operator, count in done.fused.items())
    note = f"fused operators: {listed}; {done.nodes_after} nodes instead of {done.nodes_before}"
    return Stage(fused, (note, *done.reasons))


def quantised_graph(source: Path, folder: Path, bits: int, progress: Progress) -> Stage:
    """Give the weights of a graph few bits.

    Raises:
        BadInputError: a graph without a matrix to quantise, or weights that are not finite.
    """
    target = _folder(folder / "quantised") / GRAPH_FILE
    with progress.task("quantising weights", 1) as advance:
        done = quantise_graph(source, target, bits=bits)
        advance()
    kept = f", {len(done.kept)} kept as they were" if done.kept else ""
    wide = sum(found != bits for found in done.bits.values())
    head = f" (of these {wide} of 8, at the head)" if wide else ""
    sizes = f"weights of {done.bytes_after / 1e6:.1f} MB instead of {done.bytes_before / 1e6:.1f} MB"
    return Stage(target, (f"{len(done.bits)} matrices of {bits} bits{head}{kept}; {sizes}",))


def _export(model: PreTrainedModel, graph: Path, settings: ExportSettings, progress: Progress) -> None:
    size = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    with progress.task("exporting the graph", 1) as advance, _quiet_torch():
        try:
            export_graph(
                model,
                graph,
                opset=DEFAULT_OPSET if settings.opset is None else settings.opset,
                external_data=settings.external_data or size > LARGEST_INLINE,
            )
        except torch.onnx.OnnxExporterError as error:
            raise BadInputError(
                f"torch {torch.__version__} cannot write this {model.config.model_type} as a graph: "
                f"{_last_line(error)}; --as checkpoint bakes the same edits"
            ) from error
        advance()


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def _remove(graph: Path) -> None:
    """The files of a step that is over: a model of any size would lie on disk once more."""
    for file in graph.parent.iterdir():
        file.unlink()


@contextmanager
def _quiet_torch() -> Iterator[None]:
    """Inside this context torch's exporter logs errors alone: it warns of packages that have nothing to do with us."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _last_line(error: Exception) -> str:
    """The end of a message: torch puts what went wrong behind advice of many lines."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
