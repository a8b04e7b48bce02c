"""Making the folder of a graph: the baked model, traced; then, where asked for, fused operators and small weights."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch
from alignez_bake.exporters.baked_model import baked_checkpoint, load_baked
from alignez_bake.exporters.checkpoint_contents import checkpoint_contents
from alignez_bake.exporters.onnx import GRAPH_FILE
from alignez_bake.exporters.protocol import Exported

from alignez_bake.errors import BadInputError
from alignez_bake.onnx_export.companions import companion_files
from alignez_bake.onnx_export.graph import export_graph
from alignez_bake.onnx_export.opsets import DEFAULT_OPSET

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
LARGEST_INLINE = 32 * 1024 * 1024


def write_graph_folder(
    base: ModelFolder, lowering: Lowering, out: Path, settings: ExportSettings, progress: Progress
) -> Exported:
    """Write graph, config, generation config and tokenizer into `out`.

    The model is loaded from the checkpoint that would be the result of `--as checkpoint`: what is traced is what its
    users get, and nothing of an edit is computed twice in two ways.

    Args:
        base: the base model.
        lowering: the way of every edit, none of them refused.
        out: the folder to write into.
        settings: what was asked for.
        progress: counts tensors, then steps.

    Raises:
        BadInputError: as `CheckpointExporter.export` and `export_graph`.
    """
    with TemporaryDirectory(prefix=".graphs-", dir=out) as name:
        stages = out / name
        with baked_checkpoint(base, lowering, out, dtype=settings.dtype, progress=progress) as checkpoint:
            model = load_baked(base, lowering, checkpoint, device="cpu").model
            graph = _exported(model, stages / "exported", settings, progress)
            del model
        notes: list[str] = []
        for file in sorted(graph.parent.iterdir()):
            file.replace(out / file.name)
    rewritten = checkpoint_contents(base, lowering).rewritten
    skipped = companion_files(base, lowering.home, out, dtype=settings.dtype, rewritten=rewritten)
    return Exported(skipped, tuple(notes))


def _exported(model: PreTrainedModel, folder: Path, settings: ExportSettings, progress: Progress) -> Path:
    folder.mkdir()
    graph = folder / GRAPH_FILE
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
    return graph


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
