"""The graph that quantised weights are measured against, made again for the time of the measurement."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from alignez_bake.exporters.onnx_stages import full_precision_graph
from alignez_bake.exporters.output_folder import scratch_place

if TYPE_CHECKING:
    from collections.abc import Iterator

    from alignez_bake.exporters.protocol import ExportSettings

    from alignez_bake.lowering.decide import Lowering
    from alignez_bake.model_folder import ModelFolder
    from alignez_bake.progress import Progress


@contextmanager
def graph_before_quantisation(
    base: ModelFolder, lowering: Lowering, out: Path, settings: ExportSettings, progress: Progress
) -> Iterator[Path]:
    """The graph that quantised weights were made of; it goes with the context.

    Args:
        base: the base model.
        lowering: how the edits went in.
        out: the result.
        settings: what it was made with.
        progress: counts tensors and steps.

    Raises:
        BadInputError: as the export.
    """
    with TemporaryDirectory(prefix=".graphs-", dir=scratch_place(out)) as name:
        yield full_precision_graph(base, lowering, Path(name), settings, progress).graph
