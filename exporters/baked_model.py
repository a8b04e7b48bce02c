"""The baked model as a live one, for artefacts that are made of it, or measured against it."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from alignez_bake.exporters.checkpoint import CheckpointExporter
from alignez_bake.exporters.output_folder import OURS
from alignez_bake.exporters.protocol import ExportSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from alignez_bake.language_model.loading import LoadedModel
    from alignez_bake.lowering.decide import Lowering
    from alignez_bake.model_folder import ModelFolder
    from alignez_bake.progress import Progress


@contextmanager
def baked_checkpoint(
    base: ModelFolder, lowering: Lowering, place: Path | None, *, dtype: str | None, progress: Progress
) -> Iterator[Path]:
    """The checkpoint of a lowering, in a temporary folder that goes with the context.

    Args:
        base: the base model.
        lowering: the way of every edit, none of them refused.
        place: the folder is made here; None: in the system's place for temporary files.
        dtype: of all float tensors; the stored dtypes unless given.
        progress: counts tensors.

    Yields:
        The folder.

    Raises:
        BadInputError: as `CheckpointExporter.export`.
    """
    with TemporaryDirectory(prefix=".checkpoint-", dir=place) as name:
        folder = Path(name)
        (folder / OURS).mkdir()
        CheckpointExporter().export(base, lowering, folder, ExportSettings(dtype), progress)
        yield folder


def load_baked(base: ModelFolder, lowering: Lowering, checkpoint: Path, *, device: str) -> LoadedModel:
    """The model of `baked_checkpoint`, by transformers' own loader; no code but the generated one is run."""
    return CheckpointExporter().reload(base, checkpoint, lowering, device=device, trust_remote_code=False).loaded
