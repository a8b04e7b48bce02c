"""Making the folder of a graph."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from alignez_bake.exporters.checkpoint_contents import checkpoint_contents
from alignez_bake.exporters.onnx_stages import full_precision_graph, quantised_graph
from alignez_bake.exporters.protocol import Exported

from alignez_bake.onnx_export.companions import companion_files

if TYPE_CHECKING:
    from alignez_bake.exporters.protocol import ExportSettings, SkippedFile

    from alignez_bake.lowering.decide import Lowering
    from alignez_bake.model_folder import ModelFolder
    from alignez_bake.progress import Progress


def write_graph_folder(
    base: ModelFolder, lowering: Lowering, out: Path, settings: ExportSettings, progress: Progress
) -> Exported:
    """Write graph, config, generation config and tokenizer into `out`.

    Args:
        base: the base model.
        lowering: the way of every edit, none of them refused.
        out: the folder to write into.
        settings: what was asked for.
        progress: counts tensors, then steps.

    Raises:
        BadInputError: as the steps.
    """
    with TemporaryDirectory(prefix=".graphs-", dir=out) as name:
        folder = Path(name)
        stages = [full_precision_graph(base, lowering, folder, settings, progress)]
        if settings.weight_bits is not None:
            stages.append(quantised_graph(stages[0].graph, folder, settings.weight_bits, progress))
        for file in sorted(stages[-1].graph.parent.iterdir()):
            file.replace(out / file.name)
    skipped = write_companions(base, lowering, out, dtype=settings.dtype)
    return Exported(skipped, tuple(note for stage in stages for note in stage.notes))


def write_companions(base: ModelFolder, lowering: Lowering, out: Path, *, dtype: str | None) -> tuple[SkippedFile, ...]:
    """Write everything but the graph, into a folder with an `alignez` subfolder; errors as `companion_files`.

    The config is the one of the model without inserted modules: those are nodes, and a loader of the graph needs no
    code for them.
    """
    rewritten = checkpoint_contents(base, lowering).rewritten
    return companion_files(base, lowering.home, out, dtype=dtype, rewritten=rewritten)
