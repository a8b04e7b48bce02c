"""The base of a bake, opened: pickled weights are turned into safetensors files for as long as it takes."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from alignez_bake.architectures.architecture import architecture_for
from alignez_bake.errors import BadInputError
from alignez_bake.exporters.output_folder import check_output, staged_output
from alignez_bake.model_folder import open_model_folder, read_config
from alignez_bake.pickled_weights import convert_pickles, is_pickled
from alignez_bake.safetensors_io.reader import open_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from alignez_bake.model_folder import ModelFolder
    from alignez_bake.progress import Progress


@contextmanager
def opened_base(
    folder: Path, out: Path | None, *, fp8: bool, allow_pickle: bool, progress: Progress | None = None
) -> Iterator[ModelFolder]:
    """A base for the time of a command.

    Args:
        folder: of the base.
        out: beside which pickled weights are turned into safetensors; None: where temporary files go.
        fp8: as `open_model_folder`.
        allow_pickle: whether pickled weights are read, by torch's weights-only loader.
        progress: counts files.

    Yields:
        The base; of pickled weights its tensors lie in files that go when the context ends, all else where it was.

    Raises:
        BadInputError: as `open_model_folder` and `convert_pickles`.
    """
    if not allow_pickle or not folder.is_dir() or not is_pickled(folder):
        yield open_model_folder(folder, fp8=fp8)
    elif out is None:
        with TemporaryDirectory(prefix="alignez-bake-") as place:
            yield _converted(folder, Path(place), progress)
    else:
        beside = out.with_name(f"{out.name}.pickles")
        check_output(beside, folder)
        with staged_output(beside) as staging:
            yield _converted(folder, staging, progress)


def _converted(folder: Path, place: Path, progress: Progress | None) -> ModelFolder:
    config = read_config(folder)
    try:
        architecture = architecture_for(config)
    except BadInputError as error:
        raise BadInputError(f"{folder}: {error}") from None
    tied = None
    if architecture.is_tied(config):
        tied = (
            f"{architecture.head}.weight",
            f"{architecture.embed}.weight".removeprefix(f"{architecture.base_model_prefix}."),
        )
    convert_pickles(folder, place, tied=tied, progress=progress)
    return open_model_folder(folder, tensors=open_folder(place))
